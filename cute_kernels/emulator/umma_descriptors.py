"""The two descriptors of tcgen05.mma: where an operand lies in shared memory, and what is computed.

Decoding validates: what the PTX ISA does not allow raises DescriptorError, what it allows and the emulator
does not model raises UnsupportedForm. Sources: PTX ISA 9.7.16.2 (shapes), 9.7.16.4 (descriptors),
9.7.16.10.1 and .3 (transpose, negate, swizzle), 9.7.16.10.7 (block scaling); the bit fields agree with
CUTLASS' cute/arch/mma_sm100_desc.hpp and with the DSL's builders
(tests/instructions/test_umma_descriptors.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property, lru_cache

from cute_kernels.emulator.errors import EmulationError


class DescriptorError(EmulationError):
    """A descriptor that the ISA does not allow."""

    def __init__(self, message: str) -> None:
        super().__init__("descriptor", message)


class UnsupportedForm(EmulationError):  # noqa: N818  (the ISA allows the form; the emulator lacks it)
    """A form of an instruction that the emulator does not model."""

    def __init__(self, message: str) -> None:
        super().__init__("unknown-instruction", message)


class Swizzle(IntEnum):
    """Swizzling mode of a matrix descriptor, as its bits 61-63 spell it."""

    NONE = 0
    B128_ATOM32 = 1
    B128 = 2
    B64 = 4
    B32 = 6

    @property
    def span(self) -> int:
        """Bytes of one row of the swizzle atom; 16 without swizzling."""
        return {0: 16, 1: 128, 2: 128, 4: 64, 6: 32}[self.value]


@dataclass(frozen=True)
class MatrixDescriptor:
    """A decoded 64-bit shared-memory matrix descriptor. All three fields are in bytes."""

    start: int  # offset in the CTA's shared window, 16-byte aligned
    leading: int  # leading dimension byte offset (LBO)
    stride: int  # stride dimension byte offset (SBO)
    swizzle: Swizzle


def _field(bits: int, low: int, width: int) -> int:
    return (bits >> low) & ((1 << width) - 1)


@lru_cache(maxsize=4096)
def decode_matrix_descriptor(bits: int) -> MatrixDescriptor:
    """Decodes a matrix descriptor of tcgen05.mma or tcgen05.cp (ISA table 40).

    Raises DescriptorError for wrong constant or reserved bits and for an invalid swizzling mode,
    UnsupportedForm for a base offset and for the absolute leading-dimension mode.
    """
    where = f"matrix descriptor {bits:#018x}"
    if _field(bits, 46, 3) != 0b001:
        raise DescriptorError(f"{where}: bits 46-48 are {_field(bits, 46, 3):#05b}, they must be 0b001")
    for low, width in ((14, 2), (30, 2), (53, 8)):
        if _field(bits, low, width):
            raise DescriptorError(
                f"{where}: bits {low}-{low + width - 1} are {_field(bits, low, width):#x}, they must be 0 "
                "(did an address of more than 18 bits, or a carry of an advance, reach them?)"
            )
    mode = _field(bits, 61, 3)
    if mode not in (0, 1, 2, 4, 6):
        raise DescriptorError(
            f"{where}: swizzling mode {mode} is invalid; 0 none, 1 128B with 32B atoms, 2 128B, 4 64B, 6 32B"
        )
    if _field(bits, 52, 1):
        raise UnsupportedForm("matrix descriptor with an absolute leading dimension (K = 96 on sm_103a)")
    if _field(bits, 49, 3):
        raise UnsupportedForm(
            f"matrix descriptor with base offset {_field(bits, 49, 3)}: align the swizzle pattern "
            "(1024 bytes for 128B, 512 for 64B, 256 for 32B) and leave the base offset 0"
        )
    return MatrixDescriptor(
        start=_field(bits, 0, 14) << 4,
        leading=_field(bits, 16, 14) << 4,
        stride=_field(bits, 32, 14) << 4,
        swizzle=Swizzle(mode),
    )


@dataclass(frozen=True)
class InstructionDescriptor:
    """A decoded 32-bit instruction descriptor, with the qualifiers that give its bits a meaning.

    m, n, k are those of the whole instruction: with cta_group 2 each CTA holds m/2 rows of A and of D and n/2
    rows of B. scale_block is the number of K elements that share a scale factor, 0 for kinds without scales.
    """

    kind: str
    cta_group: int
    m: int
    n: int
    k: int
    a_format: str  # a key of number_formats.BITS
    b_format: str
    d_format: str  # "f32", "f16", "s32"
    transpose_a: bool
    transpose_b: bool
    negate_a: bool
    negate_b: bool
    saturate: bool
    scale_format: str  # "ue8m0", "ue4m3" or ""
    scale_block: int  # 0, 16 or 32
    scale_id_a: int
    scale_id_b: int

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __hash__(self) -> int:  # what an instruction touches is looked up by its descriptor, over and over
        return self._hash

    @property
    def scales_per_row(self) -> int:
        """Scale factors of one row of A or B in one instruction (the N of scale_vec::NX)."""
        return self.k // self.scale_block if self.scale_block else 0

    def element_bits(self, operand: str) -> int:
        """Bits that one element of operand "a" or "b" occupies in shared memory, padding included."""
        name = self.a_format if operand == "a" else self.b_format
        if self.kind in ("mxf4", "mxf4nvf4"):
            return 4
        return 8 if self.kind in ("f8f6f4", "mxf8f6f4", "i8") else {"f16": 16, "bf16": 16, "tf32": 32}[name]


_F8F6F4 = {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1"}
_OPERANDS = {
    "f16": {0: "f16", 1: "bf16"},
    "tf32": {2: "tf32"},
    "f8f6f4": _F8F6F4,
    "i8": {0: "u8", 1: "s8"},
    "mxf8f6f4": _F8F6F4,
    "mxf4": {1: "e2m1"},
    "mxf4nvf4": {1: "e2m1"},
}
_RESULTS = {
    "f16": {0: "f16", 1: "f32"},
    "tf32": {1: "f32"},
    "f8f6f4": {0: "f16", 1: "f32"},
    "i8": {2: "s32"},
}
_K = {"f16": 16, "tf32": 8, "f8f6f4": 32, "i8": 32, "mxf8f6f4": 32, "mxf4": 64, "mxf4nvf4": 64}
_SCALE_BLOCKS = {
    "mxf8f6f4": {"": 32, "scale_vec::1X": 32, "block32": 32},
    "mxf4": {"": 32, "scale_vec::2X": 32, "block32": 32},
    "mxf4nvf4": {"scale_vec::2X": 32, "block32": 32, "scale_vec::4X": 16, "block16": 16},
}
# Bits that must be 0, as (low, width). Bit 12 of the mxf4 kinds is reserved in the ISA, but the DSL's builder
# sets it (its sparsity_version, without effect on sm_100), so it is not checked.
_RESERVED = {"dense": ((6, 1), (23, 1), (29, 1)), "scaled": ((0, 2), (3, 1), (6, 1), (24, 3))}


@lru_cache(maxsize=1024)
def decode_instruction_descriptor(
    bits: int, kind: str, cta_group: int, scale_vector: str = "", a_in_tensor_memory: bool = False
) -> InstructionDescriptor:
    """Decodes the instruction descriptor of tcgen05.mma.cta_group.kind (ISA tables 42-44).

    kind: without its prefix, "mxf4" for .kind::mxf4. scale_vector: the qualifier as written without its dot,
    "block32" or "scale_vec::2X", "" for none. Sparse and weight-stationary forms are not decoded: the caller
    refuses .sp and .ws by their names, and the sparsity bit is refused here.
    """
    if kind not in _K:
        raise DescriptorError(f"tcgen05.mma has no .kind::{kind}; it has {', '.join(_K)}")
    if cta_group not in (1, 2):
        raise DescriptorError(f"cta_group::{cta_group} does not exist")
    where = f"instruction descriptor {bits:#010x} of kind::{kind}"
    if _field(bits, 2, 1):
        raise UnsupportedForm(f"{where}: sparse A (bit 2)")
    scaled = kind in _SCALE_BLOCKS
    for low, width in _RESERVED["scaled" if scaled else "dense"]:
        if _field(bits, low, width):
            raise DescriptorError(f"{where}: reserved bits {low}-{low + width - 1} are not 0")
    if scaled:
        d_format, saturate, m = "f32", False, _field(bits, 27, 2) << 7
        scale = _scales(bits, kind, scale_vector, where)
    else:
        if scale_vector:
            raise DescriptorError(f"kind::{kind} takes no .{scale_vector}: it has no block scaling")
        if _field(bits, 0, 2) or _field(bits, 30, 2):
            raise DescriptorError(f"{where}: bits 0-1 and 30-31 are for .sp and .ws, they must be 0 here")
        d_format = _lookup(_RESULTS[kind], _field(bits, 4, 2), where, "bits 4-5 (D type)")
        saturate, m = bool(_field(bits, 3, 1)), _field(bits, 24, 5) << 4
        if saturate and kind != "i8":
            raise DescriptorError(f"{where}: saturation (bit 3) exists for kind::i8 alone")
        scale = ("", 0, 0, 0)
    width_b = 2 if kind in ("mxf4", "mxf4nvf4") else 3
    what_b = f"bits 10-{9 + width_b} (B type)"
    result = InstructionDescriptor(
        kind=kind,
        cta_group=cta_group,
        m=m,
        n=_field(bits, 17, 6) << 3,
        k=_K[kind],
        a_format=_lookup(_OPERANDS[kind], _field(bits, 7, 3), where, "bits 7-9 (A type)"),
        b_format=_lookup(_OPERANDS[kind], _field(bits, 10, width_b), where, what_b),
        d_format=d_format,
        transpose_a=bool(_field(bits, 15, 1)),
        transpose_b=bool(_field(bits, 16, 1)),
        negate_a=bool(_field(bits, 13, 1)),
        negate_b=bool(_field(bits, 14, 1)),
        saturate=saturate,
        scale_format=scale[0],
        scale_block=scale[1],
        scale_id_a=scale[2],
        scale_id_b=scale[3],
    )
    _check_types(result, where, a_in_tensor_memory)
    _check_shape(result, where)
    return result


def _lookup(table: dict[int, str], code: int, where: str, what: str) -> str:
    if code not in table:
        known = ", ".join(f"{key} = {value}" for key, value in table.items())
        raise DescriptorError(f"{where}: {what} is {code}; allowed: {known}")
    return table[code]


def _scales(bits: int, kind: str, scale_vector: str, where: str) -> tuple[str, int, int, int]:
    """(scale format, K elements a scale, id of A's scales, id of B's scales)."""
    blocks = _SCALE_BLOCKS[kind]
    if scale_vector not in blocks:
        allowed = ", ".join(name or "none" for name in blocks)
        given = scale_vector or "none"
        raise DescriptorError(f"kind::{kind} with scale vector {given}; allowed: {allowed}")
    if _field(bits, 31, 1):
        if kind == "mxf8f6f4":
            raise DescriptorError(f"{where}: reserved bit 31 is not 0")
        raise UnsupportedForm(f"{where}: K = 96 (bit 31), which sm_103a alone has")
    block = blocks[scale_vector]
    name = "ue8m0" if _field(bits, 23, 1) else "ue4m3"
    if name == "ue4m3" and not (kind == "mxf4nvf4" and block == 16):
        raise DescriptorError(
            f"{where}: UE4M3 scales (bit 23 = 0) exist for kind::mxf4nvf4 with .block16 alone; "
            "set bit 23 for UE8M0"
        )
    ids = _field(bits, 29, 2), _field(bits, 4, 2)
    # A scale id is the first byte of a 4-byte word; the scales of a row must not straddle a word.
    allowed_ids = tuple(range(0, 4, _K[kind] // block))
    for operand, identity in zip("AB", ids, strict=True):
        if identity not in allowed_ids:
            raise DescriptorError(f"{where}: scale factor id {identity} of {operand}; allowed: {allowed_ids}")
    return name, block, *ids


def _check_types(d: InstructionDescriptor, where: str, a_in_tensor_memory: bool) -> None:
    if d.d_format == "f16" and d.kind == "f16" and (d.a_format, d.b_format) != ("f16", "f16"):
        raise DescriptorError(f"{where}: an F16 result needs F16 operands, not {d.a_format} and {d.b_format}")
    if d.kind == "i8" and (d.negate_a or d.negate_b):
        raise DescriptorError(f"{where}: kind::i8 cannot negate an operand (bits 13-14)")
    for operand, name, transposed in (("A", d.a_format, d.transpose_a), ("B", d.b_format, d.transpose_b)):
        if transposed and name in ("e2m1", "e2m3", "e3m2"):
            raise DescriptorError(f"{where}: {operand} cannot be transposed: {name} exists K-major alone")
    if a_in_tensor_memory and d.transpose_a:
        raise DescriptorError(f"{where}: A in tensor memory cannot be transposed")


def _check_shape(d: InstructionDescriptor, where: str) -> None:
    sizes = (128, 256) if d.cta_group == 2 else (128,) if d.scale_block else (64, 128)
    if d.m not in sizes:
        raise DescriptorError(f"{where}: M = {d.m} with cta_group::{d.cta_group}; allowed: {sizes}")
    if d.kind == "i8":
        steps = range(32, 257, 32) if d.cta_group == 2 else (8, 16, 24, *range(32, 257, 16))
    else:
        steps = range(16, 257, 16) if d.cta_group == 2 else range(8, 257, 8)
    if d.transpose_b and d.element_bits("b") == 8:
        steps = range(16 * d.cta_group, 257, 16 * d.cta_group)
    if d.n not in steps:
        raise DescriptorError(
            f"{where}: N = {d.n} with cta_group::{d.cta_group}"
            f"{' and an 8-bit transposed B' if d.transpose_b else ''}; allowed: {', '.join(map(str, steps))}"
        )
