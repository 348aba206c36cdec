"""setmaxnreg, by which warpgroups of a CTA hand registers to each other (PTX ISA, "setmaxnreg")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cute_kernels.emulator.clocks import READY
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.control import converged
from cute_kernels.emulator.handlers.registry import steps
from cute_kernels.emulator.ptx import Immediate, Instruction, PtxError
from cute_kernels.emulator.register_pool import FEWEST, GRANULE, MOST, Move
from cute_kernels.emulator.sleep import sleep_until
from cute_kernels.emulator.warp import Group, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Program, Step


@steps("setmaxnreg")
def _setmaxnreg(instruction: Instruction, program: Program) -> Step:
    operand, action = instruction.operands[0], instruction.modifiers[0]
    if not isinstance(operand, Immediate) or action not in ("inc", "dec"):
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    if not program.module.target.endswith(("a", "f")):
        raise PtxError(f"setmaxnreg in code for {program.module.target}; it exists on sm_90a, sm_100a, ...")
    registers = operand.integer()

    def run(warp: Warp, group: Group) -> Status:
        if not converged(warp, group, True, instruction.name):
            return Status.WAIT
        pool = warp.cta.registers
        if group.token is None:
            _begin(warp, action, registers)
            group.token = pool
        if not pool.move(warp.index, registers):
            group.why = f"{registers} registers a thread; {pool.free * 32} registers are free"
            sleep_until(warp, group, pool.sleepers)
            return Status.WAIT
        warp.machine.events += 1
        return Status.NEXT

    return run


def _begin(warp: Warp, action: str, registers: int) -> None:
    """Checks what the ISA demands of a setmaxnreg, and notes that the warp executes it."""
    if not FEWEST <= registers <= MOST or registers % GRANULE:
        raise EmulationError(
            "registers",
            f"setmaxnreg to {registers} registers a thread; multiples of {GRANULE} from {FEWEST} to {MOST} are allowed",
        )
    pool = warp.cta.registers
    if pool.at_entry is None:
        warp.machine.warn(
            f"{warp.program.kernel.name}: setmaxnreg may have no effect, since nothing says how many registers a "
            "thread has at entry; give .maxnreg, or .minnctapersm with .reqntid or .maxntid (min_blocks_per_mp in the "
            "DSL's launch)"
        )
    pool.check_direction(warp.index, action, registers)
    warp.machine.undefined_registers(pool.disagreement(warp.index, action, registers) or _unordered(warp))
    pool.moves[warp.index].append(Move(action, registers, warp.epoch))


def _unordered(warp: Warp) -> str:
    """What is wrong if the last setmaxnreg of another warp of the warpgroup is not ordered before this one; or ""."""
    pool = warp.cta.registers
    number = len(pool.moves[warp.index])
    for other in pool.group_of(warp.index) if number else ():
        moves = pool.moves[other]
        time = moves[number - 1].time if len(moves) >= number else None
        slot = warp.cta.warps[other].generic_slot
        if other != warp.index and (time is None or warp.clock[READY, slot] < time):
            return (
                f"a second setmaxnreg is not ordered after the first one of warp {other} of the same warpgroup; put a "
                "barrier of the warpgroup (bar.sync) between"
            )
    return ""
