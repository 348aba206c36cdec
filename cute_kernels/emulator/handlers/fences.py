"""Memory fences, proxy fences, tcgen05 fences (PTX ISA, "membar, fence", "tcgen05.fence")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cute_kernels.emulator.clocks import READY, TENSOR, TENSOR_READY
from cute_kernels.emulator.global_order import strength
from cute_kernels.emulator.handlers.registry import handles
from cute_kernels.emulator.ptx import Instruction, PtxError
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program


@handles("membar", "fence")
def _memory_fence(instruction: Instruction, program: Program) -> Handler:
    """Orders generic accesses; what it tells others goes by a relaxed operation that follows."""
    if "proxy" in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")

    scope = strength(instruction).scope

    def run(warp: Warp, mask: Mask) -> None:
        warp.words.fence(mask, scope)

    return run


@handles("fence.mbarrier_init")
def _barrier_init_fence(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        _show_barriers(warp)

    return run


@handles("fence.proxy.async", "fence.proxy.async::generic", "fence.proxy.alias")
def _proxy_fence(instruction: Instruction, program: Program) -> Handler:
    if "alias" in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")

    def run(warp: Warp, mask: Mask) -> None:
        warp.order.proxy_fence(mask)
        _show_barriers(warp)

    return run


def _show_barriers(warp: Warp) -> None:
    for barrier in warp.cta.mbarriers.values():
        if barrier.initialised_by == warp.generic_slot:
            barrier.fenced = True


@handles("tcgen05.fence::after_thread_sync")
def _fence_after(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        warp.order.tensor_fence(mask)

    return run


@handles("tcgen05.fence::before_thread_sync")
def _fence_before(instruction: Instruction, program: Program) -> Handler:
    """What this warp's own completed tcgen05.ld and .st were ordered before can now be told to others."""

    def run(warp: Warp, mask: Mask) -> None:
        slot = warp.cta.slot(warp.index, TENSOR)
        warp.order.changed()
        warp.clock[READY, slot] = warp.clock[TENSOR_READY, slot]

    return run
