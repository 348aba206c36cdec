"""mma.sync: the fragments of its operands and the product (PTX ISA 9.7.14.5, block scaling 9.7.14.3).

All the fragments that the manual lists shape by shape are one rule. With lane = 4 * g + t, and p elements in
a register (p = 1 for f64 and tf32, 2 for 16-bit, 4 for 8-bit, 8 for 4-bit elements):

    A  register r, element e: row g + 8 * (r % (M / 8)), k = (r // (M / 8)) * 4p + t * p + e
    B  register r, element e: column g, k = r * 4p + t * p + e
    C  element i: row g + 8 * (i // 2), column 2 * t + i % 2; 16-bit elements lie two in a register

so the registers, put in order, are the bytes of the rows of A and of B, K contiguous.

Scale factors: with thread id i of A, lanes with t = 2i hold those of row g, lanes with t = 2i + 1 those of
row g + 8; with thread id i of B, lanes with t = i hold those of column g. The byte id names the first byte
of the register.

Numerics are those of umma.py: exact products, one sum in float64, one rounding. f64 is a chain of fused
multiply-adds along K that starts from C: an H200 gives the same bits
(tests/instructions/test_recorded_matrices).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator import number_formats as formats
from cute_kernels.emulator.float_rounding import rounded_fma_f64
from cute_kernels.emulator.umma_descriptors import DescriptorError, UnsupportedForm

Register = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

_FP8 = ("e4m3", "e5m2")
_F8F6F4 = (*_FP8, "e3m2", "e2m3", "e2m1")
_BITS = {**formats.BITS, "u4": 4, "s4": 4, "f64": 64, "f32": 32, "s32": 32}
# (kind, types of A, types of B are one of these, types of C and D) -> the shapes it has.
_FORMS: list[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = [
    ("", ("f16",), ("f16", "f32"), ("m16n8k8", "m16n8k16")),
    ("", ("bf16",), ("f32",), ("m16n8k8", "m16n8k16")),
    ("", ("tf32",), ("f32",), ("m16n8k4", "m16n8k8")),
    ("", _FP8, ("f16", "f32"), ("m16n8k16", "m16n8k32")),
    ("", ("u8", "s8"), ("s32",), ("m8n8k16", "m16n8k16", "m16n8k32")),
    ("", ("u4", "s4"), ("s32",), ("m8n8k32", "m16n8k32", "m16n8k64")),
    ("", ("f64",), ("f64",), ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16")),
    ("f8f6f4", _F8F6F4, ("f16", "f32"), ("m16n8k32",)),
    ("mxf8f6f4", _F8F6F4, ("f32",), ("m16n8k32",)),
    ("mxf4", ("e2m1",), ("f32",), ("m16n8k64",)),
    ("mxf4nvf4", ("e2m1",), ("f32",), ("m16n8k64",)),
]
# (kind, qualifier, scale type) -> scale factors of a row.
_SCALES = {
    ("mxf8f6f4", "", "ue8m0"): 1,
    ("mxf8f6f4", "scale_vec::1X", "ue8m0"): 1,
    ("mxf4", "", "ue8m0"): 2,
    ("mxf4", "scale_vec::2X", "ue8m0"): 2,
    ("mxf4nvf4", "scale_vec::2X", "ue8m0"): 2,
    ("mxf4nvf4", "scale_vec::4X", "ue8m0"): 4,
    ("mxf4nvf4", "scale_vec::4X", "ue4m3"): 4,
}
_ROUNDINGS = ("rn", "rz", "rm", "rp")  # of f64
# Types whose two operands must be the same; the others mix freely.
_PAIRED = ("f16", "bf16", "tf32", "f64")


@dataclass(frozen=True)
class MmaForm:
    """One form of mma.sync.

    scales: factors a row, 0 without block scaling; scale_format is "" then. rounding: of f64, "rn" for the
    others.
    """

    m: int
    n: int
    k: int
    kind: str
    a_format: str
    b_format: str
    d_format: str  # of C and of D: "f16", "f32", "f64", "s32"
    saturate: bool
    scales: int
    scale_format: str
    rounding: str

    @property
    def registers(self) -> tuple[int, int, int]:
        """Registers a thread of A, of B, and of C or D (64-bit ones for f64)."""
        width = 64 if self.d_format == "f64" else 32
        stored = 8 if self.kind in ("f8f6f4", "mxf8f6f4") else _BITS[self.a_format]
        accumulator = self.m * self.n // 32 * _BITS[self.d_format] // width
        return self.m * self.k * stored // 32 // width, self.n * self.k * stored // 32 // width, accumulator


@lru_cache(maxsize=64)
def form(modifiers: tuple[str, ...]) -> MmaForm:
    """The form that the modifiers of an mma instruction name, as written and without dots."""
    text = "mma." + ".".join(modifiers)
    rest = [m for m in modifiers if m not in ("sync", "aligned")]
    rounding = next((m for m in rest if m in _ROUNDINGS), "")
    types = [m for m in rest if m in _BITS or m in ("ue8m0", "ue4m3")]
    shape = next((m for m in rest if re.fullmatch(r"m\d+n\d+k\d+", m)), "")
    kind = next((m[len("kind::") :] for m in rest if m.startswith("kind::")), "")
    vector = next((m for m in rest if m.startswith("scale_vec::")), "")
    flags = {"row", "col", "satfinite", "block_scale", shape, f"kind::{kind}", vector, rounding, *types}
    scaled = kind.startswith("mx")
    if (
        any(m not in flags for m in rest)
        or [m for m in rest if m in ("row", "col")] != ["row", "col"]
        or len(types) != 4 + scaled
        or ("block_scale" in rest) != scaled
    ):
        raise UnsupportedForm(f"{text}: not a form of mma that the emulator knows")
    d, a, b, c = types[:4]
    allowed = any(
        kind == k and a in operands and b in operands and c == d and c in results and shape in shapes
        for k, operands, results, shapes in _FORMS
    )
    scale_format = types[4] if scaled else ""
    scales = _SCALES.get((kind, vector, scale_format), 0)
    saturate = "satfinite" in rest
    if (
        not allowed
        or (a in _PAIRED and a != b)
        or (scaled and not scales)
        or (vector and not scaled)
        or (saturate and d != "s32")
        or (rounding and d != "f64")
    ):
        raise UnsupportedForm(f"{text}: no such combination of shape, types and qualifiers")
    m, n, k = (int(x) for x in re.findall(r"\d+", shape))
    return MmaForm(m, n, k, kind, a, b, d, saturate, scales, scale_format, rounding or "rn")


def multiply(
    f: MmaForm,
    a: Sequence[Register],
    b: Sequence[Register],
    c: Sequence[Register],
    scale_a: Sequence[npt.NDArray[np.uint32]] = (),
    select_a: Sequence[npt.NDArray[np.integer]] = (),
    scale_b: Sequence[npt.NDArray[np.uint32]] = (),
    select_b: Sequence[npt.NDArray[np.integer]] = (),
) -> list[Register]:
    """D's registers, each [32], from those of A, B and C: uint32, or uint64 for f64.

    scale_a, scale_b: the one metadata register of each operand. select_a, select_b: (byte id, thread id).
    """
    given = tuple(len(registers) for registers in (a, b, c))
    if given != f.registers:
        raise UnsupportedForm(
            f"mma.m{f.m}n{f.n}k{f.k} with {given} registers of A, B and C; it has {f.registers}"
        )
    left, right = _decode(f, f.a_format, a, f.m), _decode(f, f.b_format, b, f.n)
    if f.scales:
        left = _scaled(left, _factors(f, "A", scale_a, select_a))
        right = _scaled(right, _factors(f, "B", scale_b, select_b))
    total = accumulator(f, c)
    with np.errstate(over="ignore", invalid="ignore"):
        if f.d_format != "f64":
            return list(encode(f, left @ right.T + total))
        for k in range(f.k):
            total = rounded_fma_f64(left[:, k, None], right[None, :, k], total, f.rounding)
        return list(encode(f, total))


def can_join(modifiers: tuple[str, ...]) -> bool:
    """Whether `Joined` takes this form: no block scaling, and an accumulator that `multiply` rounds once."""
    try:
        f = form(modifiers)
    except UnsupportedForm:
        return False
    return not f.scales and f.d_format != "f64"


class Joined:
    """Several mma of one form, and copies of their results, as if executed one after another.

    items: for each mma the registers (indices) of D and those of A, B and C; for a copy its target and its source.
    No mma may read as A or B what another writes. Products are computed at once; sums of those that add to an
    earlier result follow step by step.
    """

    def __init__(
        self, f: MmaForm, items: Sequence[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]
    ) -> None:
        self._form = f
        self._a: dict[tuple[int, ...], int] = {}
        self._b: dict[tuple[int, ...], int] = {}
        self._pairs: list[tuple[int, int]] = []
        self._steps: list[
            list[tuple[int, list[int]]]
        ] = []  # of mma that depend on none of their step: C's registers
        source: dict[int, int] = {}  # by register: which result (or, below 0, which register) it holds
        depth: list[int] = []
        width = f.registers[2]
        for d, parts in items:
            if len(parts) == 1:
                source[d[0]] = source.get(parts[0][0], ~parts[0][0])
                continue
            a, b, c = parts
            at = len(self._pairs)
            self._pairs.append((self._a.setdefault(a, len(self._a)), self._b.setdefault(b, len(self._b))))
            taken = [source.get(register, ~register) for register in c]
            depth.append(1 + max((depth[t // width] for t in taken if t >= 0), default=-1))
            while len(self._steps) <= depth[at]:
                self._steps.append([])
            self._steps[depth[at]].append((at, taken))
            source.update((register, at * width + i) for i, register in enumerate(d))
        self._written = list(source.items())
        self._left, self._right = (
            np.array(column, dtype=np.int64) for column in zip(*self._pairs, strict=True)
        )

    def __call__(self, registers: list[Any]) -> None:
        """Executes them on the registers of a whole warp."""
        f = self._form
        left = self._operand(registers, self._a, f.a_format, f.m)
        right = self._operand(registers, self._b, f.b_format, f.n)
        products = np.matmul(left[self._left], right[self._right].transpose(0, 2, 1))
        width = f.registers[2]
        results: list[Any] = [None] * (len(self._pairs) * width)
        for step in self._steps:
            c = np.array([results[t] if t >= 0 else registers[~t] for _, taken in step for t in taken])
            total = products[[at for at, _ in step]] + accumulator(f, c.reshape(len(step), width, 32))
            for (at, _), rows_of_one in zip(step, encode(f, total), strict=True):
                results[at * width : (at + 1) * width] = rows_of_one
        new = [(register, results[t] if t >= 0 else registers[~t]) for register, t in self._written]
        for register, value in new:
            registers[register] = value

    def _operand(
        self, registers: list[Any], tuples: dict[tuple[int, ...], int], name: str, count: int
    ) -> Matrix:
        stacked = np.array([registers[index] for indices in tuples for index in indices])
        return _decode(self._form, name, stacked.reshape(len(tuples), -1, 32), count)


def rows(registers: Sequence[Register] | Register, count: int) -> Bytes:
    """Bytes of the rows of an operand, K contiguous: [..., registers, 32] -> uint8 [..., count, K bytes]."""
    stacked = np.asarray(registers)
    outer = stacked.shape[:-2]
    blocks = _moved(stacked.reshape(*outer, -1, count // 8, 8, 4), -4, -2)
    return np.ascontiguousarray(blocks).view(np.uint8).reshape(*outer, count, -1)


def _moved(values: npt.NDArray[Any], source: int, to: int) -> npt.NDArray[Any]:
    """np.moveaxis with negative axes, without its cost."""
    axes = list(range(values.ndim))
    axes.insert(values.ndim + to, axes.pop(source))
    return values.transpose(axes)


def _decode(f: MmaForm, name: str, registers: Sequence[Register] | Register, count: int) -> Matrix:
    data = rows(registers, count)
    if name == "f64":
        return data.view(np.float64)
    if name in ("u4", "s4"):
        nibbles = formats.unpack_nibbles(data).astype(np.float64)
        return nibbles if name == "u4" else nibbles - 16 * (nibbles > 7)
    if f.kind in ("f8f6f4", "mxf8f6f4") and name in formats.REGISTER_SHIFT:
        codes = formats.unpack_containers(data, name, formats.REGISTER_SHIFT[name])
        return np.take(formats.TABLES[name], codes).astype(np.float64)
    return formats.decode_bytes(data, name)


def _factors(
    f: MmaForm, operand: str, data: Sequence[Register], select: Sequence[npt.NDArray[np.integer]]
) -> npt.NDArray[np.float64]:
    """Scale factors of the rows of an operand, float64 [M or N, scales]."""
    if len(data) != 1 or len(select) != 2:
        raise UnsupportedForm(f"mma with block scaling: {operand} needs one scale register and two selectors")
    byte, thread = (int(np.asarray(x).reshape(-1)[0]) for x in select)
    if any((np.asarray(x) != y).any() for x, y in zip(select, (byte, thread), strict=True)):
        raise DescriptorError(f"mma with block scaling: the selectors of {operand} differ between lanes")
    threads = range(2) if operand == "A" else range(4)
    if byte not in range(0, 4, f.scales) or thread not in threads:
        raise DescriptorError(
            f"mma with block scaling: selectors {{{byte}, {thread}}} of {operand}; byte ids "
            f"{list(range(0, 4, f.scales))} and thread ids {list(threads)} exist with {f.scales} factors a row"
        )
    quads = np.ascontiguousarray(np.broadcast_to(data[0], 32)).reshape(8, 4)
    words = quads[:, [2 * thread, 2 * thread + 1]].T.reshape(-1) if operand == "A" else quads[:, thread]
    codes = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 4)[:, byte : byte + f.scales]
    if f.scale_format == "ue4m3" and (codes & 0x80).any():
        raise DescriptorError(f"mma with block scaling: a UE4M3 scale factor of {operand} has bit 7 set")
    return np.take(formats.TABLES[f.scale_format], codes).astype(np.float64)


def _scaled(values: Matrix, factors: npt.NDArray[np.float64]) -> Matrix:
    count, scales = factors.shape
    return (values.reshape(count, scales, -1) * factors[:, :, None]).reshape(values.shape)


# C and D: [..., rows / 8, 8 (g), 4 (t), 2 (i % 2)] <-> registers [..., (row half, pair), 32].
def accumulator(f: MmaForm, registers: Sequence[Register] | Register) -> Matrix:
    stacked = np.asarray(registers)
    outer, halves = stacked.shape[:-2], f.m // 8
    if f.d_format == "f16":
        pairs = np.ascontiguousarray(stacked).view(np.float16).reshape(*outer, halves, 8, 4, 2)
    else:
        kind = {"f32": np.float32, "s32": np.int32, "f64": np.float64}[f.d_format]
        pairs = _moved(stacked.view(kind).reshape(*outer, halves, 2, 8, 4), -3, -1)
    return pairs.astype(np.float64, order="C").reshape(*outer, f.m, f.n)


def encode(f: MmaForm, total: Matrix) -> Register:
    outer, halves = total.shape[:-2], f.m // 8
    if f.d_format == "f16":
        half = np.ascontiguousarray(total.astype(np.float16))
        return half.reshape(*outer, halves, 8, 4, 2).view(np.uint32).reshape(*outer, halves, 32)
    words: Register
    if f.d_format == "s32":
        if f.saturate:
            total = np.clip(total, -(2.0**31), 2.0**31 - 1)
        words = total.astype(np.int64).astype(np.uint32)
    elif f.d_format == "f64":
        words = total.view(np.uint64)
    else:
        words = total.astype(np.float32).view(np.uint32)
    pairs = _moved(words.reshape(*outer, halves, 8, 4, 2), -1, -3)
    return np.ascontiguousarray(pairs).reshape(*outer, 2 * halves, 32)
