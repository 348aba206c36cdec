"""Instructions by which the lanes of a warp exchange values: shfl, vote, match, redux, elect, activemask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cute_kernels.emulator import warp_ops
from cute_kernels.emulator.handlers.control import members_here
from cute_kernels.emulator.handlers.registry import read, steps, write
from cute_kernels.emulator.lanes import ONE_LANE
from cute_kernels.emulator.ptx import Instruction, Negated, Pair, Sink
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.warp import Group, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Program, Step

_NUMBERS = np.arange(LANES, dtype=np.uint32)[:, None].repeat(LANES, axis=1)  # of each lane, in all lanes
_NUMBERS.flags.writeable = False


@steps("elect.sync")
def _elect(instruction: Instruction, program: Program) -> Step:
    pair = instruction.operands[0]
    first, second = (pair.first, pair.second) if isinstance(pair, Pair) else (Sink(), pair)
    put_lane, put_chosen = write(first), write(second)
    members = read(instruction.operands[1])

    def run(warp: Warp, group: Group) -> Status:
        if not members_here(warp, group, members(warp)):
            return Status.WAIT
        mask = None if group.full else group.mask
        lane = group.mask.tobytes().index(1)
        put_lane(warp, _NUMBERS[lane], mask)
        put_chosen(warp, ONE_LANE[lane], mask)
        return Status.NEXT

    return run


@steps("shfl.sync")
def _shfl(instruction: Instruction, program: Program) -> Step:
    pair = instruction.operands[0]
    first, second = (pair.first, pair.second) if isinstance(pair, Pair) else (pair, Sink())
    put, put_valid = write(first), write(second)
    source, b, c, members = (read(operand) for operand in instruction.operands[1:5])
    mode = instruction.modifiers[1]

    def run(warp: Warp, group: Group) -> Status:
        if not members_here(warp, group, members(warp)):
            return Status.WAIT
        mask = None if group.full else group.mask
        values, valid = warp_ops.shfl(mode, source(warp), b(warp), c(warp), group.mask)
        put(warp, values, mask)
        put_valid(warp, valid, mask)
        return Status.NEXT

    return run


@steps("vote.sync")
def _vote(instruction: Instruction, program: Program) -> Step:
    put = write(instruction.operands[0])
    operand = instruction.operands[1]
    negated = isinstance(operand, Negated)
    source = read(operand.value if isinstance(operand, Negated) else operand, "pred")
    members = read(instruction.operands[2])
    mode = instruction.modifiers[1]

    def run(warp: Warp, group: Group) -> Status:
        if not members_here(warp, group, members(warp)):
            return Status.WAIT
        values = source(warp)
        put(
            warp,
            warp_ops.vote(mode, ~values if negated else values, group.mask),
            None if group.full else group.mask,
        )
        return Status.NEXT

    return run


@steps("match.any.sync", "match.all.sync")
def _match(instruction: Instruction, program: Program) -> Step:
    pair = instruction.operands[0]
    first, second = (pair.first, pair.second) if isinstance(pair, Pair) else (pair, Sink())
    put, put_all = write(first), write(second)
    source = read(instruction.operands[1], instruction.modifiers[-1])
    members = read(instruction.operands[2])
    mode = instruction.modifiers[0]

    def run(warp: Warp, group: Group) -> Status:
        if not members_here(warp, group, members(warp)):
            return Status.WAIT
        mask = None if group.full else group.mask
        lanes, same = warp_ops.match(mode, source(warp), group.mask)
        put(warp, lanes, mask)
        put_all(warp, same, mask)
        return Status.NEXT

    return run


@steps("redux.sync")
def _redux(instruction: Instruction, program: Program) -> Step:
    put = write(instruction.operands[0])
    source, members = read(instruction.operands[1]), read(instruction.operands[2])

    def run(warp: Warp, group: Group) -> Status:
        if not members_here(warp, group, members(warp)):
            return Status.WAIT
        values = warp_ops.redux(instruction.modifiers[1:], source(warp), group.mask)
        put(warp, values, None if group.full else group.mask)
        return Status.NEXT

    return run


@steps("activemask")
def _activemask(instruction: Instruction, program: Program) -> Step:
    put = write(instruction.operands[0])

    def run(warp: Warp, group: Group) -> Status:
        bits = int(np.packbits(group.mask, bitorder="little").view(np.uint32)[0])
        put(warp, np.full(LANES, bits, dtype=np.uint32), None if group.full else group.mask)
        return Status.NEXT

    return run
