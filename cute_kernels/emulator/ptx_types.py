"""What the PTX reader produces: operands, instructions, kernels, modules. Plain values without behaviour."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


class PtxError(Exception):
    """PTX that cannot be read, or an instruction form that the emulator does not implement."""


TYPE_BITS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "b128": 128}
TYPE_BITS |= {f"{kind}{bits}": bits for kind in "su" for bits in (8, 16, 32, 64)}
TYPE_BITS |= {"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "tf32": 32, "f32": 32, "f64": 64, "f32x2": 64}
TYPE_BITS |= {
    "e4m3": 8,
    "e5m2": 8,
    "e4m3x2": 16,
    "e5m2x2": 16,
    "e2m1x2": 8,
    "e2m3x2": 16,
    "e3m2x2": 16,
    "ue8m0x2": 16,
    "s2f6x2": 16,
}
TYPE_BITS |= {"u16x2": 32, "s16x2": 32, "e4m3x4": 32, "e5m2x4": 32, "e2m1x4": 16, "e2m3x4": 32, "e3m2x4": 32}
FLOAT_TYPES = frozenset({"f16", "bf16", "f32", "f64", "tf32"})


class Register(NamedTuple):
    """One virtual register: its place in the register file and its declared type ("pred", "b32")."""

    index: int  # type: ignore[assignment]  # NamedTuple: hides tuple.index, on purpose
    type: str


class Immediate(NamedTuple):
    """A literal as written: "-1", "0x10U", "0f3F800000", "0d3FF0000000000000", "1.5"."""

    text: str

    def value(self, type: str) -> int:
        """The literal's bits as the type stores them, in [0, 2**width); for "pred" 0 or 1.

        A 64-bit literal (0d...) used as f32 is rounded; a decimal number is encoded as the float type.
        """
        if type == "pred":
            return int(self.integer() != 0)
        text = self.text.lower()
        negative, digits = text.startswith("-"), text.lstrip("+-")
        if (
            digits.startswith(("0f", "0d"))
            or "." in digits
            or ("e" in digits and not digits.startswith("0x"))
        ):
            return _float_bits(digits, type, negative)
        return self.integer() & ((1 << TYPE_BITS[type]) - 1)

    def integer(self) -> int:
        """The literal as a signed Python integer, of any size; 0f and 0d literals give their bit pattern."""
        text = (
            self.text.lower().rstrip("u")
            if not self.text.lower().startswith(("0f", "0d"))
            else self.text.lower()
        )
        negative, digits = text.startswith("-"), text.lstrip("+-")
        if digits.startswith(("0f", "0d")):
            magnitude = int(digits[2:], 16)
        elif digits.startswith(("0x", "0b")):
            magnitude = int(digits, 0)
        elif len(digits) > 1 and digits.startswith("0") and digits.isdecimal():
            magnitude = int(digits, 8)
        elif digits.isdecimal():
            magnitude = int(digits)
        else:
            raise PtxError(f"{self.text!r} is no integer literal")
        return -magnitude if negative else magnitude


def _float_bits(digits: str, type: str, negative: bool) -> int:
    bits = TYPE_BITS[type]
    if digits.startswith("0f") and bits != 64:
        return int(digits[2:], 16) ^ (negative << 31)
    if digits.startswith("0d") and (bits == 64 or type not in FLOAT_TYPES):
        return int(digits[2:], 16) ^ (negative << 63)
    if digits.startswith("0f"):
        value = struct.unpack("<f", struct.pack("<I", int(digits[2:], 16)))[0]
    elif digits.startswith("0d"):
        value = struct.unpack("<d", struct.pack("<Q", int(digits[2:], 16)))[0]
    else:
        value = float(digits)
    form = {16: "<e", 32: "<f", 64: "<d"}[bits]
    return int.from_bytes(struct.pack(form, -value if negative else value), "little")


class Symbol(NamedTuple):
    """The address of a variable, parameter, function or branch table, plus a byte offset (`table+8`)."""

    name: str
    offset: int = 0


class Special(NamedTuple):
    """A special register, by its whole name: "%tid.x", "%laneid", "%clock64", or the constant "WARP_SZ"."""

    name: str


class Vector(NamedTuple):
    """`{a, b, ...}`, or a parenthesised list of a call."""

    items: tuple[Operand, ...]


class Address(NamedTuple):
    """`[base + offset]`; `[map, {c0, c1}]` has coordinates (c0, c1); the rest is `extra`."""

    base: Register | Symbol | Immediate | Special
    offset: int = 0
    coordinates: tuple[Operand, ...] | None = None
    extra: tuple[Operand, ...] = ()


class Pair(NamedTuple):
    """`first|second`: a destination and its predicate."""

    first: Operand
    second: Operand


class Negated(NamedTuple):
    """`!p`."""

    value: Operand


class Sink(NamedTuple):
    """`_`: a destination that nobody reads."""


Operand: TypeAlias = "Register | Immediate | Symbol | Special | Vector | Address | Pair | Negated | Sink"


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the program that the PTX was made from; `inlined_at` is the call that it was inlined for."""

    file: str
    line: int
    inlined_at: Location | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `target` is the index that a `bra` goes to; `text` is the statement as written; `name` is the
    whole name: "cp.async.bulk.tensor.2d..."."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    guard_negated: bool
    target: int | None
    location: Location | None
    ptx_line: int
    text: str
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", ".".join((self.opcode, *self.modifiers)))


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a kernel or function: `type` is the declared one ("u64", or "b8" for an array)."""

    name: str
    nbytes: int
    align: int
    type: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in a state space ("shared", "global", "const", "local", "param").

    `initial` holds the bytes of an initialiser (zero-padded to nbytes; None when there is none); where an
    address stands in it, `addresses` has (byte offset, width in bytes, symbol, addend, generic) and the bytes
    are zero. An unsized array (`.extern .shared ... name[]`) has nbytes 0 and `unsized`.
    """

    name: str
    space: str
    nbytes: int
    align: int
    initial: bytes | None = None
    addresses: tuple[tuple[int, int, str, int, bool], ...] = ()
    unsized: bool = False
    extern: bool = False


@dataclass
class Kernel:
    """A kernel (or a `.func`, when `is_entry` is false) with its code and what it declares.

    `returned` are the parameters in which a function returns what it does.
    `registers` is the type of each register by index, `register_names` its name as written. `shared` and
    `local` map a symbol to (nbytes, align): the function's own variables and, for shared, the module's that
    it mentions. `dynamic_shared` maps the unsized shared arrays to their alignment, `call_params` the
    function-scope .param variables to (nbytes, align). Names that a nested scope repeats are told apart by a
    suffix "#line". `labels` maps a label to an instruction index, `branch_targets` a `.branchtargets` table
    to indices. `directives` has every performance directive by name with its numbers.
    """

    name: str
    params: list[Param]
    is_entry: bool = True
    returned: list[Param] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    registers: list[str] = field(default_factory=list)
    register_names: list[str] = field(default_factory=list)
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    dynamic_shared: dict[str, int] = field(default_factory=dict)
    local: dict[str, tuple[int, int]] = field(default_factory=dict)
    call_params: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    branch_targets: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reqntid: tuple[int, int, int] | None = None
    maxntid: tuple[int, int, int] | None = None
    cluster: tuple[int, int, int] | None = None
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Module:
    """A PTX file: version ("9.4"), target ("sm_100a"), kernels, other functions, module-scope variables.

    A `.global` or `.const` variable declared inside a function stands in `variables` too.
    """

    version: str
    target: str
    kernels: dict[str, Kernel] = field(default_factory=dict)
    functions: dict[str, Kernel] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self.kernels.values())
