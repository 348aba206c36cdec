"""Launches a compiled GEMM variant on the emulator by hand, with no runtime between: PTX, descriptors, integers.

Tests that change a kernel's PTX need this: what they launch is in no manifest.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sm100
from cute_kernels.build.variant import TensorMapSpec, Variant
from cute_kernels.device.umma_formats import UE8M0, Format, OperandTile
from cute_kernels.device.umma_formats import Operand as OperandFormat
from cute_kernels.emulator import Device, Report
from cute_kernels.runtime.arguments import ELEMENT_BITS, Tiled, argument_of, in_blocks

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
POISON = 0xFB
SCHEDULES = ("eager", "lazy", "random")


@dataclass
class Operand:
    """A matrix [rows, k] as a kernel takes it, and its exact values.

    codes: its elements, in rows of `pitch` bytes, for a tensor map of extents `dims`.
    words: packed scale words, MN-major, each column `words_pitch` bytes from the one before; factor: the global one.
    """

    codes: NDArray[np.uint8]
    dims: tuple[int, int]
    pitch: int
    words: NDArray[np.uint8]
    words_pitch: int
    factor: NDArray[np.float32]
    values: NDArray[np.float64]


def aligned(nbytes: int, fill: int = POISON) -> NDArray[np.uint8]:
    """Bytes that start at a multiple of 64, as a descriptor's address must at 16."""
    memory = np.full(nbytes + 64, fill, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]


def random_operand(rng: np.random.Generator, rows: int, k: int, form: Format, tile: OperandTile) -> Operand:
    """Elements, scale factors and, where the format has one, a global factor at random: each block its own."""
    of = tile.operand
    elements, values = random_elements(rng, rows, k, of)
    words, words_pitch, factor = aligned(0), 0, aligned(4).view(np.float32)
    factor[0] = 1.0
    if of.granularity:
        low, high = (118, 137) if form.scale == UE8M0 else (0, 127)
        blocks = -(-k // of.granularity)
        scales = rng.integers(low, high, (rows, blocks)).astype(np.uint8)
        columns, words_pitch = -(-blocks // 4), -(-rows // 4) * 16
        words = aligned(columns * words_pitch, fill=0)
        by_byte = words.reshape(columns, -1, 4)
        for j in range(blocks):
            by_byte[j // 4, :rows, j % 4] = scales[:, j]
        factors = 2.0 ** (scales.astype(float) - 127) if form.scale == UE8M0 else E4M3[scales]
        factor[0] = rng.uniform(0.5, 2.0) if form.global_scales else 1.0
        values = values * np.repeat(factors, of.granularity, 1)[:, :k] * float(factor[0])
    if tile.major == "mn":
        elements = elements.T
    lines = np.ascontiguousarray(elements).view(np.uint8)
    outer, width = lines.shape
    pitch = -(-width // 32) * 32
    codes = aligned(outer * pitch)
    codes.reshape(outer, pitch)[:, :width] = lines
    extent = width if of.load_as == "u8" else k
    return Operand(codes, (extent, outer), pitch, words, words_pitch, factor, values)


def random_elements(
    rng: np.random.Generator, rows: int, k: int, of: OperandFormat
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Elements at random, [rows, k] or, of FP4, [rows, k / 2]; and their values."""
    if of.bits == 16:  # of sizes from 1/8 to 8
        x = torch.from_numpy(rng.normal(0, 1, (rows, k)) * 2.0 ** rng.integers(-3, 4, (rows, k)))
        x = x.to(torch.bfloat16)
        return x.view(torch.int16).numpy(), x.double().numpy()
    codes = rng.integers(0, 256, (rows, of.bytes_in_memory(k)), dtype=np.uint8)
    if of.bytes_in_memory(k) < k:
        return codes, np.stack([E2M1[codes & 15], E2M1[codes >> 4]], -1).reshape(rows, k)
    codes[codes & 0x7F == 0x7F] = 0  # NaN
    return codes, E4M3[codes]


def compile_ptx(variant: Variant, arch: str = "sm_100a") -> str:
    """The variant's PTX, with source lines."""
    with tempfile.TemporaryDirectory() as folder:
        text: str = variant.compile(arch, f"--keep-ptx --generate-line-info --dump-dir={folder}").__ptx__
    return text


def gemm(
    variant: Variant,
    ptx: str,
    m: int,
    n: int,
    k: int,
    schedule: str = "random",
    seed: int = 0,
    num_sms: int = 2,
    step_limit: int = 10_000_000,
    share: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64], Report]:
    """Runs D = A @ B^T, plus a random C where the variant adds one; gives D as stored, D exactly, and the report.

    Of a variant with swapped operands D is [n, m], B @ A^T.
    share: K tiles of each CTA or pair, of a variant whose CTAs share tiles.
    """
    rng = np.random.default_rng(seed)
    form = variant.shape.format
    a, b = (
        random_operand(rng, rows, k, form, tile)
        for rows, tile in zip((m, n), variant.shape.operand_tiles, strict=True)
    )
    config = variant.shape.config()
    element = 2 if config["d_dtype"] == "bf16" else 4
    exact = b.values @ a.values.T if config["swap_ab"] else a.values @ b.values.T
    rows, columns = exact.shape
    pitch = -(-columns * element // 16) * 16
    c, d = aligned(rows * pitch), aligned(rows * pitch)
    if config["accumulate"]:
        addend = torch.from_numpy(rng.normal(0, np.std(exact), exact.shape)).to(_torch_type(element))
        c.reshape(rows, pitch)[:, : columns * element] = addend.view(torch.uint8).numpy()
        exact = exact + addend.double().numpy()
        if not variant.shape.loads_c:
            d[:] = c
    tiles = -(-m // config["tile_m"]) * -(-n // (config["tile_n"] * (1 + config.get("multicast", False))))
    shares = -(-tiles * -(-k // config["tile_k"]) // share) if share else 0
    slots, flags = (
        aligned(shares * config["cta_group"] * config.get("slot_bytes", 0)),
        aligned(shares * config["cta_group"] * 4 * config.get("flags", 0), 0),
    )
    device = Device("sm_100a", num_sms=num_sms, schedule=schedule, seed=seed, step_limit=step_limit)
    for name, memory in (
        ("A", a.codes),
        ("B", b.codes),
        ("SFA", a.words),
        ("SFB", b.words),
        ("global A", a.factor),
        ("global B", b.factor),
        ("C", c),
        ("D", d),
        ("slots", slots),
        ("flags", flags),
    ):
        if memory.nbytes:
            device.register(memory.ctypes.data, memory.nbytes, name)
    tensors: dict[str, tuple[NDArray[np.uint8], tuple[int, int], int]] = {
        "map_a": (a.codes, a.dims, a.pitch),
        "map_b": (b.codes, b.dims, b.pitch),
        "map_sfa": (a.words, (m, a.words.size // max(a.words_pitch, 1)), a.words_pitch),
        "map_sfb": (b.words, (n, b.words.size // max(b.words_pitch, 1)), b.words_pitch),
        "map_c": (c, (columns, rows), pitch),
        "map_d": (d, (columns, rows), pitch),
    }
    pointers = {"global_a": a.factor.ctypes.data, "global_b": b.factor.ctypes.data}
    pointers |= {"slots": slots.ctypes.data, "flags": flags.ctypes.data}
    numbers = {"m": m, "n": n, "k": k, "share": share, **pointers}
    params = [
        _tensor_map(*in_blocks(of, _tiled(of.dtype, *tensors[argument_of(param)])))
        if (of := param.tensor_map)
        else numbers[param.name].to_bytes(param.nbytes, "little")
        for param in variant.params
    ]
    ctas = config.get("cta_group", 1) * (1 + config.get("multicast", False))
    at_once = tiles if config.get("clc") else min(num_sms // ctas, tiles)
    grid = ((shares or at_once) * ctas, 1, 1)
    report = device.launch(ptx, None, grid, variant.block, variant.cluster, variant.dynamic_shared, params)
    assert not flags.any(), "the next launch finds flags that are set"
    stored = d.reshape(rows, pitch)[:, : columns * element].copy()
    result = torch.from_numpy(stored).view(_torch_type(element)).double().numpy()
    return result.reshape(rows, columns), exact, report


def _torch_type(nbytes: int) -> torch.dtype:
    return torch.bfloat16 if nbytes == 2 else torch.float32


def _tiled(dtype: str, memory: NDArray[np.uint8], dims: tuple[int, int], pitch: int) -> Tiled:
    return Tiled(memory.ctypes.data, dims[0] * ELEMENT_BITS[dtype] // 8, dims[1:], (pitch,))


def _tensor_map(spec: TensorMapSpec, tensor: Tiled) -> bytes:
    dims = tensor.dims(spec.dtype)
    how = spec.swizzle, spec.l2_promotion
    return Device.encode_tensor_map(
        spec.dtype, tensor.address, dims, tensor.strides, spec.box, (), "none", *how
    )


def relative_error(result: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    """Relative Frobenius error; infinite when anything is not finite."""
    if not np.isfinite(result).all():
        return float("inf")
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


@lru_cache
def _ptx_of(shape: Any) -> str:
    return compile_ptx(sm100.gemm_variant(shape))


def check(variant: Variant, m: int, n: int, k: int, schedule: str, seed: int, num_sms: int = 2) -> None:
    """Runs a variant, compiled at its first run, and judges D and the report."""
    share = 4 if variant.shape.split_k else 0
    result, exact, report = gemm(
        variant, _ptx_of(variant.shape), m, n, k, schedule, seed, num_sms, share=share
    )
    assert report.warnings == []
    # D in BF16 differs by one rounding: 2^-9 of each element at most.
    assert relative_error(result, exact) < (1e-6 if variant.shape.d_dtype == "f32" else 2.0**-9)


def by_turns(*values: object) -> list[Any]:
    """Each value with one schedule in every run of the tests, and with the others in the full matrix."""
    import pytest  # here, so that the mutation score needs numpy and torch alone

    return [
        pytest.param(value, schedule, marks=() if (i + j) % 3 == 0 else pytest.mark.full)
        for i, value in enumerate(values)
        for j, schedule in enumerate(SCHEDULES)
    ]


def with_seeds(test: Any) -> Any:
    """Run a test with one `seed` in every run of the tests, and with two others in the full matrix."""
    import pytest

    others = [pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2)]
    return pytest.mark.parametrize("seed", [0, *others])(test)


def half_of(variants: dict[str, Variant]) -> list[Any]:
    """Names: FP32 without C and BF16 with it in every run of the tests, the others in the full matrix alone.

    Without those whose D is quantized, several, of groups or has gaps, which `gemm` does not launch.
    """
    import pytest

    return [
        pytest.param(name, marks=pytest.mark.full if (s.d_dtype == "bf16") != s.accumulate else ())
        for name, s in ((name, variant.shape) for name, variant in variants.items())
        if not (s.quantized or s.d_batched or s.heads or s.grouped)
    ]
