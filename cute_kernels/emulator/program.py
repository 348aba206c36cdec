"""A kernel made ready to run: addresses laid out, instructions bound, straight runs compiled to Python functions.

A basic block becomes one Python function over the warp's register list: arithmetic is translated to NumPy expressions
(alu.py), everything else calls a handler that was bound when the block was compiled. Each block exists in two forms,
for a whole warp and for a group of its lanes. Instructions that can wait or move the program counter end a block and
are executed one at a time (steps).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from cute_kernels.emulator import alu, blame, handlers
from cute_kernels.emulator.batches import Batches, Block, Line, Run, registers
from cute_kernels.emulator.errors import EmulationError, Place
from cute_kernels.emulator.global_cells import narrowest_store
from cute_kernels.emulator.handlers.tensor_loads import finish_loads
from cute_kernels.emulator.layout import Layout, narrowest_shared_store
from cute_kernels.emulator.names import Names
from cute_kernels.emulator.ptx import Instruction, Kernel, Module, PtxError, Register
from cute_kernels.emulator.ptx_types import TYPE_BITS
from cute_kernels.emulator.registers import (
    UNDEFINED,
    Pending,
    RegisterError,
    Undefined,
    garbage,
    merge,
)
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

Handler = Callable[[Warp, Mask], None]
Step = Callable[[Warp, Group], Status]


class Program:
    """One kernel on one architecture, with `dynamic_shared` bytes of dynamic shared memory."""

    def __init__(self, module: Module, kernel: Kernel, dynamic_shared: int, reserved_shared: int) -> None:
        self.module = module
        self.kernel = kernel
        self.reserved_shared = reserved_shared
        layout = Layout(module, kernel, dynamic_shared, reserved_shared)
        self.symbols = layout.symbols
        self.param_offsets, self.param_bytes = layout.param_offsets, layout.param_bytes
        self.shared_bytes, self.local_bytes = layout.shared_bytes, layout.local_bytes
        self.granule = narrowest_shared_store(kernel)
        self.global_granule = narrowest_store(kernel)
        self.waits_for_grids = any(i.name == "griddepcontrol.wait" for i in kernel.instructions)
        self._namespace: dict[str, Any] = {**alu.NAMESPACE, "merge": merge}
        self._names = Names(self._namespace)
        self._steps: dict[int, Step] = {}
        self._blocks: dict[int, Block] = {}
        self._singles: dict[int, Block] = {}
        self._rests: dict[tuple[int, int], Block] = {}  # of blocks whose line faulted for no good reason
        self._leaders = self._find_leaders()
        self._copies: dict[int, list[int]] | None = None  # by register: where plain moves copy it to
        self.cluster_seconds: float | None = None  # of the CPU that a cluster took in the last launch

    def _find_leaders(self) -> set[int]:
        leaders = {0}
        for at, instruction in enumerate(self.kernel.instructions):
            if instruction.target is not None:
                leaders.add(instruction.target)
            if handlers.is_step(instruction):
                leaders.update((at, at + 1))
        for targets in self.kernel.branch_targets.values():
            leaders.update(targets)
        return leaders

    def with_copies(self, written: Iterable[int]) -> set[int]:
        """Registers, and those that plain moves may copy them to: moves carry results on that are not there yet."""
        if self._copies is None:
            self._copies = {}
            for instruction in self.kernel.instructions:
                if instruction.opcode in ("mov", "cvta") and isinstance(instruction.operands[0], Register):
                    for source in registers(instruction.operands[1]):
                        self._copies.setdefault(source.index, []).append(instruction.operands[0].index)
        found = set(written)
        left = [*found]
        while left:
            more = [index for index in self._copies.get(left.pop(), ()) if index not in found]
            found.update(more)
            left += more
        return found

    # --- execution ----------------------------------------------------------------------------------------------

    def advance(self, warp: Warp, group: Group) -> None:
        """Executes the block at the group's PC, and the step at its end."""
        block = self._blocks.get(group.pc) or self._make_block(group.pc)
        if block.start != block.end:
            self._run(block, warp, group)
        group.pc = block.end
        if not block.has_step:
            return
        warp.instructions += 1
        instruction = self.kernel.instructions[block.end]
        try:
            self._step(warp, group, block.end, instruction)
        except (RegisterError, PtxError) as fault:
            raise self._explain(warp, group, instruction, fault) from None
        except EmulationError as fault:
            raise fault.located(self.place_of(warp, group.mask, instruction, fault.address)) from None

    def _step(self, warp: Warp, group: Group, at: int, instruction: Instruction) -> None:
        if instruction.guard is not None:
            taken = warp.registers[instruction.guard.index]
            if instruction.guard_negated:
                taken = ~taken
            if instruction.opcode == "bra":
                assert instruction.target is not None
                warp.branch(group, taken, instruction.target, at + 1)
                return
            if group.token is None:
                warp.branch(group, taken, at, at + 1)  # lanes with a false guard step over it
                if group.pc != at:
                    return
        elif instruction.opcode == "bra":
            assert instruction.target is not None
            group.pc = instruction.target
            return
        warp.running.pc = at
        step = self._steps.get(at)
        if step is None:
            step = self._steps[at] = handlers.bind_step(instruction, self)
        status = step(warp, group)
        if status is Status.WAIT:
            group.stalled = True
            return
        group.token = None
        if group.pc == at:
            group.pc = at + 1
        if status is Status.YIELD:
            group.stalled = True
        else:
            group.why = ""

    def _run(self, block: Block, warp: Warp, group: Group) -> None:
        mask = None if group.full else group.mask
        run = block.forms.get(group.full)
        if run is None:
            run = self._compile(block.start, block.end, group.full, block)
        warp.instructions += block.end - block.start
        try:
            run(warp, warp.registers, mask)
        except Exception as fault:
            found = self._faulting(block.lines[group.full])
            if found is None:
                raise
            self._resume(warp, group, block, found, fault)

    def _one_by_one(self, warp: Warp, group: Group, places: Iterable[int]) -> None:
        """Executes instructions that a block held back, each for itself."""
        for at in places:
            single = self._singles.get(at)
            if single is None:
                single = self._singles[at] = Block(at, at + 1, False)
            self._run(single, warp, group)

    def _resume(self, warp: Warp, group: Group, block: Block, line: Line, fault: Exception) -> None:
        """Deals with the fault of a line, and executes the rest of the block if it was none."""
        at = line.executes[0]
        instruction = self.kernel.instructions[at]
        if isinstance(fault, EmulationError):
            raise fault.located(self.place_of(warp, group.mask, instruction, fault.address)) from None
        if not isinstance(fault, (RegisterError, PtxError)):
            raise fault
        start = line.behind
        if (
            len(line.executes) > 1 or start != at + 1
        ):  # held back: each for itself, so that the one at fault is found
            self._one_by_one(warp, group, sorted((*line.executes, *line.held)))
        else:
            self._one_by_one(warp, group, line.held)
            again = self._settle(warp, instruction)
            if not again and not self._carry(warp, instruction, None if group.full else group.mask):
                raise self._explain(warp, group, instruction, fault) from None
            start = at if again else start
        if start < block.end:
            rest = self._rests.get((start, block.end))
            if rest is None:
                rest = self._rests[start, block.end] = Block(start, block.end, False)
            self._run(rest, warp, group)

    def _settle(self, warp: Warp, instruction: Instruction) -> bool:
        """Where that is tolerated: ends the tcgen05.ld whose results an instruction uses with no wait; whether any."""
        used = [r.index for operand in instruction.operands for r in registers(operand)]
        pending = any(isinstance(warp.registers[index], Pending) for index in used)
        if not pending or "tcgen05.ld" not in warp.machine.tolerate or instruction.opcode == "mov":
            return False
        finish_loads(warp)
        warp.machine.warn(
            f"{self.source(instruction)}: the result of a tcgen05.ld is used with no tcgen05.wait::ld (tolerated)"
        )
        return True

    def _carry(self, warp: Warp, instruction: Instruction, mask: Mask) -> bool:
        """A mov of registers that hold no value: what is under way stays so, what is undefined stays undefined.

        Compilers pack and move such registers freely; only a use of the value is a fault. Packed with something
        defined, an undefined half is garbage, which no later check tells apart.
        """
        sources = [r for operand in instruction.operands[1:] for r in registers(operand)]
        if instruction.opcode != "mov" or (mask is not None and instruction.guard is not None):
            return False
        held = {r.index: warp.registers[r.index] for r in sources}
        undefined = [isinstance(value, Undefined) for value in held.values()]
        pending = any(isinstance(value, Pending) for value in held.values())
        if not held or (mask is not None and pending):
            return False
        for register in sources:
            if isinstance(held[register.index], Undefined):
                held[register.index] = garbage(TYPE_BITS[register.type])
        for target, expression in alu.translate(instruction, self._names) or []:
            code = compile(expression, "<pending>", "eval")

            def compute(code: Any = code) -> NDArray[Any]:
                values = {i: v.compute() if isinstance(v, Pending) else v for i, v in held.items()}
                result: NDArray[Any] = eval(code, {**self._namespace, "w": warp, "R": values})
                return result

            if mask is not None:
                if not all(undefined):
                    warp.registers[target.index] = merge(mask, compute(), warp.registers[target.index])
            elif all(undefined):
                warp.registers[target.index] = UNDEFINED
            elif pending:
                of = next((v.of for v in held.values() if isinstance(v, Pending)), None)
                warp.registers[target.index] = Pending(compute, of)
                if of is None:
                    warp.tensor_loads.add(target.index)
            else:
                warp.registers[target.index] = compute()
        return True

    def _faulting(self, lines: list[Line]) -> Line | None:
        """What the exception under way came from, by the line of generated code."""
        trace = sys.exc_info()[2]
        found = None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<block>":
                found = lines[trace.tb_lineno - 1]
                break
            trace = trace.tb_next
        return found

    def _explain(
        self, warp: Warp, group: Group, instruction: Instruction, fault: Exception
    ) -> EmulationError:
        place = self.place_of(warp, group.mask, instruction, None)
        if isinstance(fault, PtxError):
            return EmulationError("unknown-instruction", str(fault), place)
        sources = [*instruction.operands[1:], *instruction.operands[:1]]
        for register in [r for operand in sources for r in registers(operand)]:
            name = self.kernel.register_names[register.index]
            value = warp.registers[register.index]
            if isinstance(value, Pending):
                work, wait = ("tcgen05.ld", "tcgen05.wait::ld")
                if value.of is not None:
                    work, wait = ("wgmma", "wgmma.wait_group")
                return EmulationError(
                    "missing-wait",
                    f"{name} is the result of a {work} that no {wait} has completed",
                    place,
                )
            if isinstance(value, Undefined):
                return EmulationError("uninitialised", f"{name} is read, and nothing wrote it", place)
        return EmulationError("uninitialised", "a register is read that holds no value", place)

    def place(self, warp: Warp, instruction: Instruction) -> Place:
        """Who executes an instruction, and where it comes from."""
        found = warp.places.get(id(instruction))
        if found is None:
            found = warp.places[id(instruction)] = self._place(warp, instruction)
        return found

    def place_of(self, warp: Warp, mask: Mask, instruction: Instruction, address: int | None) -> Place:
        """The place of a fault: the lanes too, by the address where there is one."""
        lanes = blame.text(blame.lanes_at_fault(warp, instruction, mask, address))
        return replace(self.place(warp, instruction), lanes=lanes)

    def _place(self, warp: Warp, instruction: Instruction) -> Place:
        callers, location = [], instruction.location and instruction.location.inlined_at
        while location is not None:
            callers.append(str(location))
            location = location.inlined_at
        source = self.source(instruction)
        return Place(
            instruction.text.strip(),
            source,
            warp.cta.index,
            warp.index,
            callers=tuple(callers),
            launch=warp.machine.rank,
        )

    @staticmethod
    def source(instruction: Instruction) -> str:
        """Where an instruction comes from: the line of its source, or else of its PTX."""
        return str(instruction.location) if instruction.location else f"PTX line {instruction.ptx_line}"

    # --- compilation --------------------------------------------------------------------------------------------

    def _make_block(self, start: int) -> Block:
        instructions = self.kernel.instructions
        end = start
        while end < len(instructions) and not handlers.is_step(instructions[end]):
            end += 1
            if end in self._leaders:
                break
        has_step = end < len(instructions) and handlers.is_step(instructions[end])
        if end == len(instructions) and start == end:
            raise EmulationError("bad-launch", f"control flow runs off the end of {self.kernel.name}")
        block = self._blocks[start] = Block(start, end, has_step)
        return block

    def _compile(self, start: int, end: int, full: bool, block: Block) -> Run:
        body = ["def run(w, R, m):"]
        lines = [Line((start,), (), start + 1)]
        batches = Batches(self._namespace, partial(handlers.bind, program=self))
        held: set[int] = set()

        def emit(code: str, executes: tuple[int, ...], behind: int) -> None:
            held.difference_update(executes)
            body.append("    " + code)
            lines.append(Line(executes, tuple(sorted(held)), behind))

        for at in range(start, end):
            instruction = self.kernel.instructions[at]
            definitions = self._definitions(at) if full else None
            taken = batches.take(at, instruction, definitions) if full else None
            for code, executes in (
                batches.before(instruction, definitions is not None) if taken is None else taken
            ):
                emit(code, executes, at)
            if taken is not None:
                held.add(at)
                continue
            for code in self._translate(at, full):
                emit(code, (at,), at + 1)
        for code, executes in batches.flush():
            emit(code, executes, end)
        scope: dict[str, Any] = {}
        exec(compile("\n".join(body), "<block>", "exec"), self._namespace, scope)
        run: Run = scope["run"]
        block.forms[full] = run
        block.lines[full] = lines
        return run

    def _definitions(self, at: int) -> alu.Definitions | None:
        """The expressions of a per-lane instruction; None for others, and for what is refused."""
        try:
            return alu.translate(self.kernel.instructions[at], self._names)
        except (PtxError, EmulationError):
            return None

    def _translate(self, at: int, full: bool) -> list[str]:
        """The Python lines of one instruction."""
        instruction = self.kernel.instructions[at]
        lines: list[str] = []
        guard = None
        if instruction.guard is not None:
            guard = f"{'~' if instruction.guard_negated else ''}R[{instruction.guard.index}]"
        mask = guard if full else (f"(m & {guard})" if guard else "m")
        try:
            assignments = alu.translate(instruction, self._names)
            if assignments is None:
                self._namespace[f"H{at}"] = handlers.bind(instruction, self)
        except (PtxError, EmulationError) as fault:
            # Refused when it is executed, not before: a kernel may hold code that a launch never reaches.
            self._namespace[f"X{at}"] = fault
            return [f"raise X{at}"]
        if assignments is None:
            note = f"w.running.pc = {at}"
            if guard is None:
                return [note, f"H{at}(w, {'None' if full else 'm'})"]
            return [note, f"g = {mask}", f"if g.any(): H{at}(w, g)"]
        if mask is not None:
            lines.append(f"g = {mask}")
        if divisor := alu.divisor(instruction, self._names):
            lines.append(f"if not {divisor}.all(): w.divide_by_zero({divisor}, {mask and 'g'}, {at})")
        values = [expression for _, expression in assignments]
        if len(assignments) > 1:
            names = ", ".join(f"t{i}" for i in range(len(values)))
            lines.append(f"{names} = {', '.join(values)}")
            values = [f"t{i}" for i in range(len(values))]
        for (target, _), value in zip(assignments, values, strict=True):
            final = value if mask is None else f"merge(g, {value}, R[{target.index}])"
            lines.append(f"R[{target.index}] = {final}")
        return lines or ["pass"]
