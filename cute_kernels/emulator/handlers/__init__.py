"""Instructions that are not arithmetic: memory, synchronisation, asynchronous copies, tensor cores, control flow.

Each module registers factories under the beginning of an instruction's dotted name; the longest match binds it. A
factory looks at one instruction once and returns what executes it: a handler `(warp, mask) -> None`, or, for what
may wait or move the program counter, a step `(warp, group) -> Status`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cute_kernels.emulator.handlers import (  # noqa: F401  (they register what they handle)
    atomics,
    bulk,
    control,
    copies,
    fences,
    launch_control,
    loads,
    matrix,
    mbarriers,
    register_counts,
    remote,
    tensor_copies,
    tensor_loads,
    tensor_maps,
    tensor_memory,
    umma,
    warps,
    wgmma,
)
from cute_kernels.emulator.handlers.registry import HANDLERS, STEPS, longest_match
from cute_kernels.emulator.ptx import Instruction, PtxError

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program, Step


def is_step(instruction: Instruction) -> bool:
    """Whether the instruction may wait or move the program counter, so that it ends a block."""
    if instruction.opcode == "bra":
        return True
    step = longest_match(STEPS, instruction.name)
    return step is not None and len(step) >= len(longest_match(HANDLERS, instruction.name) or "")


def bind(instruction: Instruction, program: Program) -> Handler:
    """What executes an instruction that never waits."""
    found = longest_match(HANDLERS, instruction.name)
    if found is None:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    return HANDLERS[found](instruction, program)


def bind_step(instruction: Instruction, program: Program) -> Step:
    """What executes a step."""
    found = longest_match(STEPS, instruction.name)
    assert found is not None
    return STEPS[found](instruction, program)
