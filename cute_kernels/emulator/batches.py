"""Alike instructions of a basic block that do not depend on each other, executed as one on stacked registers.

While a block is compiled for a whole warp, costly instructions are held back, by expression, until one of their results
is needed or one of their sources is about to change. Then those of a kind are evaluated together, on arrays
[instructions, 32]; mma.sync joins all products and adds up chains of them step by step. Every instruction sees the
values that it would have seen in its place. Nothing is held back over tcgen05.wait, which turns pending registers into
values. What faults is executed again one by one, so a fault names its own instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from cute_kernels.emulator import alu, mma_sync
from cute_kernels.emulator.handlers import joined
from cute_kernels.emulator.ptx import Immediate, Instruction, Pair, Register, Vector
from cute_kernels.emulator.ptx_types import TYPE_BITS

if TYPE_CHECKING:
    from cute_kernels.emulator.alu_code import Definitions
    from cute_kernels.emulator.program import Handler

_REGISTER = re.compile(r"R\[(\d+)\]")
_CALL = re.compile(r"\b(?!np\b|astype\b|view\b|where\b)[a-z]\w+\(")
Code = tuple[str, tuple[int, ...]]  # a line of it and the instructions that it executes


def registers(operand: Any) -> list[Register]:
    """The registers that an operand mentions."""
    if isinstance(operand, Register):
        return [operand]
    if isinstance(operand, Vector):
        return [r for item in operand.items for r in registers(item)]
    if isinstance(operand, Pair):
        return registers(operand.first) + registers(operand.second)
    if isinstance(operand, (str, int, Immediate)) or operand is None:
        return []
    if isinstance(operand, tuple):  # Address, Negated
        return [r for item in operand for r in registers(item)]
    return []


class _Held(NamedTuple):
    """An instruction held back: its place, and the registers it writes and reads."""

    at: int
    writes: tuple[int, ...]
    reads: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...] = ()  # of mma: the registers of A, B and C
    instruction: Instruction | None = None  # of loads and stores


class Batches:
    """The instructions held back while one block is compiled; `namespace` is that of its code."""

    def __init__(self, namespace: dict[str, Any], bind: Callable[[Instruction], Handler]) -> None:
        self._namespace = namespace
        self._bind = bind  # what executes one instruction
        self._groups: dict[Any, list[_Held]] = {}
        self._writer: dict[int, Any] = {}  # by register: the group that will write it
        self._readers: dict[int, set[Any]] = {}  # by register: the groups that will read it

    def before(self, instruction: Instruction, per_lane: bool) -> list[Code]:
        """What must be executed before an instruction that is not held back; per_lane: it touches registers alone."""
        if instruction.name.startswith(("tcgen05.wait", "wgmma")):
            return self.flush()
        lines = [] if per_lane else self._release_accesses()
        mentioned = [r.index for operand in instruction.operands for r in registers(operand)]
        if instruction.guard is not None:
            mentioned.append(instruction.guard.index)
        first = instruction.operands[:1]
        return lines + self._settle(mentioned, [r.index for operand in first for r in registers(operand)])

    def take(self, at: int, instruction: Instruction, definitions: Definitions | None) -> list[Code] | None:
        """Holds an instruction back, if it is of a kind that gains; what must be executed before that."""
        if instruction.guard is not None or alu.divides(instruction):  # a divisor of 0 is told in its place
            return None
        if definitions is None:
            return (
                self._take_mma(at, instruction)
                if instruction.opcode == "mma"
                else self._take_access(at, instruction)
            )
        if len(definitions) != 1:
            return None
        (target, text) = definitions[0]
        if not _CALL.search(text):
            return self._take_move(at, target.index, text) if instruction.opcode == "mov" else None
        reads = tuple(int(index) for index in _REGISTER.findall(text))
        widths = {r.index: TYPE_BITS[r.type] for o in instruction.operands for r in registers(o)}
        if not reads or any(index not in widths for index in reads):
            return None
        key = (_REGISTER.sub("{}", text), tuple(widths[index] for index in reads))
        lines = self._settle((*reads, target.index), [target.index])
        self._hold(key, _Held(at, (target.index,), reads))
        return lines

    def flush(self) -> list[Code]:
        """Executes everything that is held back."""
        return [line for key in list(self._groups) for line in self._release(key)]

    # --- holding ------------------------------------------------------------------------------------------------

    def _take_mma(self, at: int, instruction: Instruction) -> list[Code] | None:
        if len(instruction.operands) != 4 or not mma_sync.can_join(instruction.modifiers):
            return None
        parts = tuple(
            tuple(item.index for item in operand.items if isinstance(item, Register))
            for operand in instruction.operands
            if isinstance(operand, Vector)
        )
        if tuple(map(len, parts[1:])) != mma_sync.form(instruction.modifiers).registers:
            return None
        if len(parts) != 4 or len(parts[0]) != len(parts[3]):
            return None
        d, a, b, c = parts
        key = ("mma", instruction.modifiers)
        lines = self._settle([*a, *b], [])
        for register in dict.fromkeys((*c, *d)):
            if self._writer.get(register, key) != key or self._readers.get(register, set()) - {key}:
                lines += self._settle([register], [register])
        self._hold(key, _Held(at, d, (*a, *b, *c), (a, b, c)))
        return lines

    def _take_access(self, at: int, instruction: Instruction) -> list[Code] | None:
        """Loads are held back behind loads, and stores behind stores of their kind."""
        form = joined.form(instruction)
        if form is None:
            return None
        lines = self._release_accesses(form.key)
        written, reads = (form.registers, (form.base,)) if form.load else ((), (form.base, *form.registers))
        if form.load:  # what a store reads may be held back as well: it is executed before the store
            lines += self._settle((*reads, *written), written)
        self._hold(form.key, _Held(at, tuple(written), reads, instruction=instruction))
        return lines

    def _release_accesses(self, alike: tuple[str, int, int] = ("", 0, 0)) -> list[Code]:
        """Executes the loads and stores that are held back but for those alike; beside loads, all loads stay."""
        memory = [key for key in self._groups if key[0] in ("ld", "st")]
        kept = {key for key in memory if key == alike or key[0] == alike[0] == "ld"}
        return [line for key in memory if key not in kept for line in self._release(key)]

    def _take_move(self, at: int, target: int, text: str) -> list[Code] | None:
        """A copy of an accumulator that is held back, which the next mma of the chain may take."""
        match = _REGISTER.fullmatch(text)
        key = self._writer.get(int(match[1])) if match else None
        if match is None or key is None or key[0] != "mma" or int(match[1]) == target:
            return None
        others = self._writer.get(target, key) != key or self._readers.get(target, set()) - {key}
        if others:
            return None
        self._hold(key, _Held(at, (target,), (int(match[1]),)))
        return []

    def _hold(self, key: Any, item: _Held) -> None:
        self._groups.setdefault(key, []).append(item)
        for register in item.writes:
            self._writer[register] = key
        for register in item.reads:
            self._readers.setdefault(register, set()).add(key)

    def _settle(self, mentioned: Any, written: Any) -> list[Code]:
        """Executes the groups that write a register mentioned, or read one written."""
        lines: list[Code] = []
        for register in mentioned:
            if register in self._writer:
                lines += self._release(self._writer[register])
        for register in written:
            for key in list(self._readers.get(register, ())):
                lines += self._release(key)
        return lines

    # --- code ---------------------------------------------------------------------------------------------------

    def _release(self, key: Any) -> list[Code]:
        """Executes a group, and before it what stores of it wait for."""
        sources = [register for item in self._groups.get(key, ()) for register in item.reads]
        awaited = {of: None for register in sources if (of := self._writer.get(register, key)) != key}
        lines = [line for of in awaited for line in self._release(of)]
        return lines + self._code(key)

    def _code(self, key: Any) -> list[Code]:
        items = self._groups.pop(key, [])
        for item in items:
            for register in item.writes:
                self._writer.pop(register, None)
            for register in item.reads:
                self._readers.get(register, set()).discard(key)
        if not items:
            return []
        places = tuple(item.at for item in items)
        if key[0] in ("ld", "st"):
            name = f"J{len(self._namespace)}"
            bound = [
                (item.at, item.instruction, self._bind(item.instruction))
                for item in items
                if item.instruction
            ]
            self._namespace[name] = joined.Joined(bound)
            return [(f"{name}(w)", places)]
        if key[0] == "mma":
            name = f"J{len(self._namespace)}"
            self._namespace[name] = mma_sync.Joined(
                mma_sync.form(key[1]), [(item.writes, item.parts or (item.reads,)) for item in items]
            )
            return [(f"{name}(R)", places)]
        template: str = key[0].replace("{", "{{").replace("}", "}}").replace("{{}}", "{}")
        columns = list(zip(*(item.reads for item in items), strict=True))
        if len(items) == 1 or all(len(set(column)) == 1 for column in columns):
            return [
                (f"R[{item.writes[0]}] = {template.format(*(f'R[{r}]' for r in item.reads))}", (item.at,))
                for item in items
            ]
        names: dict[tuple[int, ...], str] = {}
        for column in columns:
            if column not in names:
                same = len(set(column)) == 1
                stacked = ", ".join(f"R[{r}]" for r in column)
                names[column] = f"R[{column[0]}]" if same else f"np.array(({stacked}))"
        defined = {column: f"s{i}" for i, column in enumerate(names)}
        lines = [(f"s{i} = {text}", places) for i, text in enumerate(names.values())]
        targets = ", ".join(f"R[{item.writes[0]}]" for item in items)
        value = template.format(*(defined[column] for column in columns))
        return [*lines, (f"{targets} = {value}", places)]
