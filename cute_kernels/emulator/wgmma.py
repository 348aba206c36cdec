"""wgmma.mma_async: its forms, its descriptors, and a warp's part of the product (PTX ISA 9.7.15).

A warpgroup, four consecutive warps, computes D [64, N] = A [64, K] * B [N, K]^T (+ D), and warp w of it the rows 16 w
to 16 w + 15. Fragments of A and of D in registers are those of mma.sync with 16 rows, D's for each 8 columns one after
another. Operands in shared memory have the canonical layouts of umma_operands.py; K spans 32 bytes for all types.

Numerics are those of umma.py: exact products, one sum in float64, one rounding an instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator import mma_sync, number_formats
from cute_kernels.emulator.umma_descriptors import (
    DescriptorError,
    MatrixDescriptor,
    Swizzle,
    UnsupportedForm,
)

ROWS = 64  # of A and D in an instruction
WARP_ROWS = 16  # of them, a warp's
_PAIRS = {  # types of A and B (each of the set), types of D
    ("f16",): ("f16", "f32"),
    ("bf16",): ("f32",),
    ("tf32",): ("f32",),
    ("e4m3", "e5m2"): ("f16", "f32"),
    ("u8", "s8"): ("s32",),
}
_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "u8": 8, "s8": 8}
_SWIZZLES = (Swizzle.NONE, Swizzle.B128, Swizzle.B64, Swizzle.B32)  # as bits 62-63 spell them

Bytes = npt.NDArray[np.uint8]
Registers = Sequence[npt.NDArray[np.uint32]]


@dataclass(frozen=True)
class WgmmaForm:
    """One form of wgmma.mma_async. d_format: "f32", "f16" or "s32"."""

    n: int
    k: int
    d_format: str
    a_format: str
    b_format: str
    saturate: bool

    @property
    def element_bits(self) -> int:
        """Of A and B."""
        return _BITS[self.a_format]

    @property
    def a_registers(self) -> int:
        """32-bit registers of a thread that hold A, if they do."""
        return 4

    @property
    def d_registers(self) -> int:
        """32-bit registers of a thread that hold D."""
        return self.n // (4 if self.d_format == "f16" else 2)

    @property
    def transposes(self) -> bool:
        """Whether operands in shared memory may be MN-major: 16-bit elements alone."""
        return self.element_bits == 16

    @property
    def fragment(self) -> mma_sync.MmaForm:
        """The mma.sync whose fragments are those of a warp for 8 columns."""
        return mma_sync.MmaForm(
            WARP_ROWS, 8, self.k, "", self.a_format, self.b_format, self.d_format, self.saturate, 0, "", "rn"
        )


@lru_cache(maxsize=64)
def form(modifiers: tuple[str, ...]) -> WgmmaForm:
    """The form that the modifiers of wgmma.mma_async name, as written and without dots."""
    text = "wgmma." + ".".join(modifiers)
    rest = [m for m in modifiers if m not in ("mma_async", "sync", "aligned")]
    saturate = "satfinite" in rest
    rest = [m for m in rest if m != "satfinite"]
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", rest[0]) if rest else None
    if shape is None or len(rest) != 4:
        raise UnsupportedForm(f"{text}: not a form of wgmma.mma_async that the emulator knows")
    n, k = int(shape[1]), int(shape[2])
    d, a, b = rest[1:]
    known = any(a in types and b in types and d in results for types, results in _PAIRS.items())
    if not known or k * _BITS[a] != 256 or (saturate and d != "s32") or n not in range(8, 257, 8):
        raise UnsupportedForm(f"{text}: no such combination of shape, types and qualifiers")
    if d == "s32" and n > 32 and n % 16:
        raise UnsupportedForm(f"{text}: with integers, N above 32 is a multiple of 16")
    return WgmmaForm(n, k, d, a, b, saturate)


@lru_cache(maxsize=4096)
def decode_descriptor(bits: int) -> MatrixDescriptor:
    """Decode a matrix descriptor of wgmma (ISA, "Matrix Descriptor Format"); refuse bits that must be 0."""
    where = f"wgmma matrix descriptor {bits:#018x}"
    for low, width in ((14, 2), (30, 2), (46, 3), (52, 10)):
        if bits >> low & ((1 << width) - 1):
            raise DescriptorError(
                f"{where}: bits {low}-{low + width - 1} must be 0 (did an address of more than 18 bits, or a carry of "
                "an advance, reach them?)"
            )
    if bits >> 49 & 7:
        raise UnsupportedForm(
            f"{where}: base offset {bits >> 49 & 7}; align the swizzle pattern and leave it 0"
        )
    field = (1 << 14) - 1
    return MatrixDescriptor(
        start=(bits & field) << 4,
        leading=(bits >> 16 & field) << 4,
        stride=(bits >> 32 & field) << 4,
        swizzle=_SWIZZLES[bits >> 62],
    )


def values(name: str, rows: Bytes) -> npt.NDArray[np.float64]:
    """Values of rows of an operand: uint8 [rows, 32] -> float64 [rows, k], exact."""
    return number_formats.decode_bytes(rows, name)


def a_of_registers(f: WgmmaForm, registers: Registers) -> npt.NDArray[np.float64]:
    """A warp's rows of A from its fragment: four uint32 [32] -> float64 [16, k]."""
    return values(f.a_format, mma_sync.rows(registers, WARP_ROWS))


def multiply(
    f: WgmmaForm,
    a: npt.NDArray[np.float64],
    b: Bytes,
    d: Registers | None,
    negate: bool,
) -> list[npt.NDArray[Any]]:
    """A warp's registers of D. a: float64 [16, k]; b: uint8 [n, 32]; d: those before, or None where they do not count.

    negate: whether just one of A and B is negated.
    """
    fragment, blocks = f.fragment, f.n // 8
    with np.errstate(over="ignore", invalid="ignore"):
        total = a @ values(f.b_format, b).T
        total = -total if negate else total
        total = total.reshape(WARP_ROWS, blocks, 8).transpose(1, 0, 2)
        if d is not None:
            stacked = np.array(d).reshape(blocks, -1, 32)
            total = total + mma_sync.accumulator(fragment, stacked)
        encoded = np.asarray(mma_sync.encode(fragment, np.ascontiguousarray(total)))
    return list(encoded.reshape(-1, 32))
