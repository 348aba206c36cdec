"""CTA pairs: which CTAs a tcgen05 instruction works in (PTX ISA, "CTA Pair", "tcgen05 Instructions").

The ISA wants one .cta_group in all tcgen05 instructions of a kernel, and ptxas refuses others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cute_kernels.emulator.cta import Cta
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.ptx import Instruction
from cute_kernels.emulator.warp import Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Program


def cta_group(instruction: Instruction, program: Program) -> int:
    """Return 1 or 2; refuse a kernel with tcgen05 instructions of both."""
    group = _stated(instruction) or 1
    for other in program.kernel.instructions:
        if other.opcode == "tcgen05" and _stated(other) not in (None, group):
            raise EmulationError(
                "tensor-memory",
                f"{instruction.name} (PTX line {instruction.ptx_line}) and {other.name} (PTX line "
                f"{other.ptx_line}) in one kernel; all its tcgen05 instructions have the same .cta_group",
            )
    return group


def _stated(instruction: Instruction) -> int | None:
    return next((int(m[-1]) for m in instruction.modifiers if m.startswith("cta_group::")), None)


def pair(warp: Warp, group: int) -> list[Cta]:
    """The CTAs that an instruction of cta_group::1 or ::2 works in, the even one first."""
    if group == 1:
        return [warp.cta]
    cluster = warp.cta.cluster
    first = warp.cta.rank & ~1
    if first + 1 >= cluster.size:
        raise EmulationError(
            "bad-launch", f"cta_group::2 in a cluster of {cluster.size}; it needs pairs of CTAs"
        )
    return cluster.ctas[first : first + 2]
