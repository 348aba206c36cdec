"""Basic blocks of a kernel, and the Python functions that they become.

Each block exists in two forms, for a whole warp and for a group of its lanes. Arithmetic is translated to NumPy
expressions (alu.py), everything else calls a handler that is bound when the block is compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cute_kernels.emulator import alu, handlers
from cute_kernels.emulator.batches import Batches, registers
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.names import Names
from cute_kernels.emulator.ptx import Instruction, PtxError, Register, Vector
from cute_kernels.emulator.ptx_types import TYPE_BITS
from cute_kernels.emulator.registers import RegisterError, merge

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Program, Step

Run = Callable[[Any, list[Any], Any], None]  # of a warp, its registers and its mask


class Line(NamedTuple):
    """A line of generated code: the instructions that it executes, those before them that are held back still, and
    the instruction that comes behind all of these."""

    executes: tuple[int, ...]
    held: tuple[int, ...]
    behind: int


class Block:
    """Instructions [start, end) without a step, then possibly a step at `end`.

    step: what executes it, once it is bound. skips: where it is a forward branch over nothing but one block without a
    step, that block; `looked_ahead`: whether that has been looked for.
    """

    def __init__(self, start: int, end: int, has_step: bool) -> None:
        self.start, self.end, self.has_step = start, end, has_step
        self.count = end - start
        self.forms: dict[bool, Run] = {}  # by whether for a whole warp
        self.lines: dict[bool, list[Line]] = {}
        self.step: Step | None = None
        self.skips: Block | None = None
        self.looked_ahead = False


def _moves_halves(instruction: Instruction, vector: Any = None, *_: Any) -> bool:
    """Whether it is a move of which one operand, this one, is two registers of 32 bits."""
    return (
        instruction.opcode == "mov"
        and instruction.guard is None
        and isinstance(vector, Vector)
        and len(vector.items) == 2
        and all(isinstance(item, Register) and TYPE_BITS[item.type] == 32 for item in vector.items)
    )


def _halves(low: Any, high: Any) -> tuple[Any, Any]:
    """The values of two registers; what holds none is for the moves themselves to see."""
    if type(low) is np.ndarray and type(high) is np.ndarray:
        return low, high
    raise RegisterError


class Compiler:
    """Makes Python functions of a kernel's instructions. The program is not held: it is to go with its last user."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self._instructions = instructions
        self._mentioned: Counter[int] | None = None
        self.namespace: dict[str, Any] = {**alu.NAMESPACE, "merge": merge, "halves": _halves}
        self.names = Names(self.namespace)

    def compile(self, program: Program, block: Block, full: bool) -> Run:
        """One form of a block."""
        body = ["def run(w, R, m):"]
        lines = [Line((block.start,), (), block.start + 1)]
        batches = Batches(self.namespace, partial(handlers.bind, program=program))
        held: set[int] = set()
        repacked = self._repacked(block) if full else {}
        packs = set(repacked.values())

        def emit(code: str, executes: tuple[int, ...], behind: int) -> None:
            held.difference_update(executes)
            body.append("    " + code)
            lines.append(Line(executes, tuple(sorted(held)), behind))

        for at in range(block.start, block.end):
            instruction = self._instructions[at]
            definitions = self._definitions(instruction) if full else None
            taken = batches.take(at, instruction, definitions) if full else None
            for code, executes in (
                batches.before(instruction, definitions is not None) if taken is None else taken
            ):
                emit(code, executes, at)
            if taken is not None or at in packs:
                held.add(at)
            elif at in repacked:
                emit(self._pass_on(repacked[at], at), (repacked[at], at), at + 1)
            else:
                for code in self._translate(program, at, full):
                    emit(code, (at,), at + 1)
        for code, executes in batches.flush():
            emit(code, executes, block.end)
        scope: dict[str, Any] = {}
        exec(compile("\n".join(body), "<block>", "exec"), self.namespace, scope)
        run: Run = scope["run"]
        block.forms[full] = run
        block.lines[full] = lines
        return run

    def _repacked(self, block: Block) -> dict[int, int]:
        """Moves that take apart again what a move packed that nothing else reads: by place, that of the other one.

        Compilers pass halves of 32 bits through registers of 64. Both moves together pass them on as they are.
        """
        found: dict[int, int] = {}
        packs: dict[int, int] = {}  # by register that holds two halves: where they were packed
        for at in range(block.start, block.end):
            instruction = self._instructions[at]
            target, *sources = instruction.operands or [None]
            if _moves_halves(instruction, target) and registers(sources[0])[0].index in packs:
                found[at] = packs.pop(registers(sources[0])[0].index)
            written = {register.index for register in registers(target)}
            packs = {
                whole: place
                for whole, place in packs.items()
                if not written & {whole, *(r.index for r in registers(self._instructions[place].operands[1]))}
            }
            whole = (
                target.index if _moves_halves(instruction, *sources) and isinstance(target, Register) else -1
            )
            if self._mentions()[whole] == 2:
                packs[whole] = at
        return found

    def _pass_on(self, pack: int, at: int) -> str:
        """The line of two such moves."""
        source, target = (
            registers(self._instructions[pack].operands[1]),
            registers(self._instructions[at].operands[0]),
        )
        return (
            f"R[{target[0].index}], R[{target[1].index}] = halves(R[{source[0].index}], R[{source[1].index}])"
        )

    def _mentions(self) -> Counter[int]:
        """How often the kernel mentions each register."""
        if self._mentioned is None:
            self._mentioned = Counter(
                register.index
                for instruction in self._instructions
                for operand in (*instruction.operands, instruction.guard)
                for register in registers(operand)
            )
        return self._mentioned

    def _definitions(self, instruction: Instruction) -> alu.Definitions | None:
        """The expressions of a per-lane instruction; None for others, and for what is refused."""
        try:
            return alu.translate(instruction, self.names)
        except (PtxError, EmulationError):
            return None

    def _translate(self, program: Program, at: int, full: bool) -> list[str]:
        """The Python lines of one instruction."""
        instruction = self._instructions[at]
        lines: list[str] = []
        guard = None
        if instruction.guard is not None:
            guard = f"{'~' if instruction.guard_negated else ''}R[{instruction.guard.index}]"
        mask = guard if full else (f"(m & {guard})" if guard else "m")
        try:
            assignments = alu.translate(instruction, self.names)
            if assignments is None:
                self.namespace[f"H{at}"] = handlers.bind(instruction, program)
        except (PtxError, EmulationError) as fault:
            # Refused when it is executed, not before: a kernel may hold code that a launch never reaches.
            self.namespace[f"X{at}"] = fault
            return [f"raise X{at}"]
        if assignments is None:
            note = f"w.running.pc = {at}"
            if guard is None:
                return [note, f"H{at}(w, {'None' if full else 'm'})"]
            return [note, f"g = {mask}", f"if g.any(): H{at}(w, g)"]
        if mask not in (None, "m"):
            lines.append(f"g = {mask}")
            mask = "g"
        if divisor := alu.divisor(instruction, self.names):
            lines.append(f"if not {divisor}.all(): w.divide_by_zero({divisor}, {mask}, {at})")
        values = [expression for _, expression in assignments]
        if len(assignments) > 1:
            names = ", ".join(f"t{i}" for i in range(len(values)))
            lines.append(f"{names} = {', '.join(values)}")
            values = [f"t{i}" for i in range(len(values))]
        for (target, _), value in zip(assignments, values, strict=True):
            final = value if mask is None else f"merge({mask}, {value}, R[{target.index}])"
            lines.append(f"R[{target.index}] = {final}")
        return lines or ["pass"]
