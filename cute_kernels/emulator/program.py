"""A kernel made ready to run: addresses laid out, instructions bound, and how they are executed.

A basic block is one Python function over the warp's register list (blocks.py). Instructions that can wait or move the
program counter end a block and are executed one at a time (steps).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from cute_kernels.emulator import alu, blame, handlers
from cute_kernels.emulator.batches import registers
from cute_kernels.emulator.blocks import Block, Compiler, Line
from cute_kernels.emulator.errors import EmulationError, Place
from cute_kernels.emulator.global_cells import narrowest_store
from cute_kernels.emulator.handlers.tensor_loads import finish_loads
from cute_kernels.emulator.layout import Layout, narrowest_shared_store
from cute_kernels.emulator.ptx import Instruction, Kernel, Module, PtxError, Register
from cute_kernels.emulator.ptx_types import TYPE_BITS
from cute_kernels.emulator.registers import (
    NO_BYTES,
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

_numbers = itertools.count()


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
        self._compiler = Compiler(kernel.instructions)
        self._blocks: dict[int, Block] = {}
        self._singles: dict[int, Block] = {}
        self._rests: dict[tuple[int, int], Block] = {}  # of blocks whose line faulted for no good reason
        self._leaders = self._find_leaders()
        self._copies: dict[int, list[int]] | None = None  # by register: where plain moves copy it to
        self.cluster_seconds: float | None = None  # of the CPU that a cluster took in the last launch
        self.number = next(_numbers)  # among the programs of this process and of those that it forks

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
        if block.count:
            self._run(block, warp, group)
        at = group.pc = block.end
        if not block.has_step:
            return
        warp.instructions += 1
        instruction = self.kernel.instructions[at]
        try:
            if instruction.opcode == "bra":
                self._branch(block, warp, group, instruction)
            else:
                self._step(block, warp, group, instruction)
        except (RegisterError, PtxError) as fault:
            raise self._explain(warp, group, instruction, fault) from None
        except EmulationError as fault:
            raise fault.located(self.place_of(warp, group.mask, instruction, fault.address)) from None

    def _branch(self, block: Block, warp: Warp, group: Group, instruction: Instruction) -> None:
        at, target, guard = block.end, instruction.target, instruction.guard
        assert target is not None
        if guard is None:
            group.pc = target
            return
        lanes = group.mask
        guarded = warp.registers[guard.index] & lanes
        pattern = guarded.tobytes()
        if pattern == NO_BYTES:
            group.pc = target if instruction.guard_negated else at + 1
        elif pattern == lanes.tobytes():
            group.pc = at + 1 if instruction.guard_negated else target
        else:
            jump = lanes & ~guarded if instruction.guard_negated else guarded
            if not block.looked_ahead:
                self._look_ahead(block, target)
            if block.skips is None:
                warp.split(group, jump, target, at + 1)
                return
            group.pc = target  # where all meet again
            self._run(block.skips, warp, Group(at + 1, lanes & ~jump, False))

    def _look_ahead(self, block: Block, target: int) -> None:
        """Finds the block that the branch at the end of one skips, if it skips just that."""
        block.looked_ahead = True
        if block.end + 1 < target:
            behind = self._blocks.get(block.end + 1) or self._make_block(block.end + 1)
            if behind.end == target and not behind.has_step:
                block.skips = behind

    def _step(self, block: Block, warp: Warp, group: Group, instruction: Instruction) -> None:
        at = block.end
        if instruction.guard is not None and group.token is None:
            taken = warp.registers[instruction.guard.index]
            warp.branch(group, ~taken if instruction.guard_negated else taken, at, at + 1)
            if group.pc != at:  # lanes with a false guard step over it
                return
        warp.running.pc = at
        step = block.step
        if step is None:
            step = block.step = handlers.bind_step(instruction, self)
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
        run = block.forms.get(group.full) or self._compiler.compile(self, block, group.full)
        warp.instructions += block.count
        try:
            run(warp, warp.registers, None if group.full else group.mask)
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
        for target, expression in alu.translate(instruction, self._compiler.names) or []:
            code = compile(expression, "<pending>", "eval")

            def compute(code: Any = code) -> NDArray[Any]:
                values = {i: v.compute() if isinstance(v, Pending) else v for i, v in held.items()}
                result: NDArray[Any] = eval(code, {**self._compiler.namespace, "w": warp, "R": values})
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
