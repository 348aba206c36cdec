"""wgmma.mma_async on the emulator against what an H200 gave for the same kernels.

tests/recorded/wgmma.jsonl.gz, written by record_wgmma.py. Sums of small integers are equal bit for bit: operands in
registers and in shared memory, all swizzling modes, K- and MN-major, N from 8 to 256. Elsewhere the tensor core drops
bits below the largest term of a sum, which the ISA leaves open.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cute_kernels.emulator import Device, mma_sync, umma_operands, wgmma
from cute_kernels.emulator.umma_descriptors import MatrixDescriptor, Swizzle
from tests.recorded import wgmma_cases
from tests.recorded.wgmma_cases import THREADS, WgmmaCase

RECORD = Path(__file__).parents[1] / "recorded" / "wgmma.jsonl.gz"
CASES = list(wgmma_cases.cases())
VALUES = {"f16": np.float16, "f32": np.float32, "s32": np.int32}


def recorded() -> dict[str, str]:
    with gzip.open(RECORD, "rt") as file:
        return dict(map(json.loads, file.readlines()[1:]))


def emulate(case: WgmmaCase, schedule: str) -> bytes:
    """The output of the kernel that recorded the case."""
    source = np.concatenate([part.reshape(-1).view(np.uint8) for part in wgmma_cases.case_input(case)])
    result = np.full(case.d_registers * THREADS * 4, 0xA5, np.uint8)
    device = Device(arch="sm_90a", num_sms=1, schedule=schedule)
    for array in (source, result):
        device.register(array.ctypes.data, array.nbytes)
    params = [struct.pack("<Q", array.ctypes.data) for array in (source, result)]
    device.launch(wgmma_cases.kernel(case), "kernel", (1, 1, 1), (THREADS, 1, 1), (1, 1, 1), 0, params)
    return result.tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: WgmmaCase) -> None:
    output = emulate(case, ("eager", "lazy", "random")[case.n // 8 % 3])
    if case.kind == "exact":
        assert hashlib.sha256(output).hexdigest() == recorded()[case.name]
        return
    got = np.frombuffer(output, VALUES[case.d]).astype(np.float64)
    wanted = np.frombuffer(base64.b64decode(recorded()[case.name]), VALUES[case.d]).astype(np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(got[~finite], wanted[~finite])
    error = np.abs(np.subtract(got, wanted, where=finite, out=np.zeros_like(got)))
    assert (error <= bound(case) * case.steps * largest_terms(case)).all()


def bound(case: WgmmaCase) -> float:
    """The error of one product, relative to the largest term. With FP8, sm_90 keeps some 13 bits of a sum in f32."""
    if case.d == "f16":
        return 2.0**-10 if case.a == "f16" else 2.0**-8
    return 2.0**-10 if wgmma_cases.BITS[case.a] == 8 else 2.0**-20


def largest_terms(case: WgmmaCase) -> npt.NDArray[np.float64]:
    """The largest magnitude that is added up for each element of D, in the order of D's registers."""
    f = wgmma.form(("mma_async", f"m64n{case.n}k{256 // wgmma_cases.BITS[case.a]}", case.d, case.a, case.b))
    memory, a, d = wgmma_cases.case_input(case)
    leading, stride = wgmma_cases.strides(case, False)
    largest = np.zeros((4, case.d_registers, 32), np.float32 if case.d == "f32" else np.uint32)
    for warp in range(4):
        of_warp = slice(32 * warp, 32 * warp + 32)
        left = np.abs(wgmma.a_of_registers(f, list(a[:, of_warp])))
        before = mma_sync.accumulator(f.fragment, d[:, of_warp].reshape(case.n // 8, -1, 32))
        terms = np.abs(before)
        for step in range(case.steps):
            start = wgmma_cases.B_AT + 32 * step
            at = MatrixDescriptor(start, leading, stride, Swizzle.B128)
            chunks = umma_operands.operand_chunks(at, case.n, f.element_bits)
            right = np.abs(wgmma.values(f.b_format, memory.reshape(-1, 16)[chunks // 16].reshape(case.n, 32)))
            products = left[:, None] * right[None]
            added = products.sum(-1) if case.d == "f16" else products.max(-1)
            terms = np.maximum(terms, added.reshape(16, case.n // 8, 8).transpose(1, 0, 2))
        with np.errstate(over="ignore"):  # in f16 to infinity, as the product itself
            words = np.asarray(mma_sync.encode(f.fragment, np.ascontiguousarray(terms)))
        largest[warp] = words.reshape(case.d_registers, 32).view(largest.dtype)
    return largest.transpose(1, 0, 2).reshape(-1).view(VALUES[case.d]).astype(np.float64)


def test_the_recording_is_complete() -> None:
    assert list(recorded()) == [case.name for case in CASES]


def test_a_wait_for_one_warps_part_took_as_long_as_the_last_warps_delay() -> None:
    """What docs/vendor_kernels.md says of the H200; the emulator is stricter (test_wgmma.py)."""
    cases = json.loads((RECORD.parent / "wgmma_parts.json").read_text())["cases"]
    assert {(case["late"], case["delay"]) for case in cases} > {("fence", 200_000), ("product", 200_000)}
    for case in cases:
        assert case["right"]
        assert all(case["delay"] < clocks < case["delay"] + 3000 for clocks in case["clocks"])
