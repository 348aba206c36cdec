"""Cluster launch control (PTX ISA, "clusterlaunchcontrol.try_cancel", "clusterlaunchcontrol.query_cancel").

A request asks that one cluster of the grid never start, so that who asked may do its work. The answer is 16 bytes that
mean something to query_cancel alone. They arrive as what a bulk copy brings does: through the async proxy, with their
bytes counted on an mbarrier. Which cluster is cancelled, and whether any is, the ISA leaves open: Grid.cancel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.engine import Operation
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.bulk import bulk_destinations, issue_load, lanes_of
from cute_kernels.emulator.handlers.loads import check_alignment, load, spread
from cute_kernels.emulator.handlers.registry import active, address, handles, items, read, write
from cute_kernels.emulator.memory import OFFSET_MASK
from cute_kernels.emulator.ptx import Instruction, PtxError, Register
from cute_kernels.emulator.registers import LANES, WIDE, join, merge
from cute_kernels.emulator.shared_chunks import chunks_of_run
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.cta import Cta
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Handler, Program
    from cute_kernels.emulator.setting import Dim3

RESPONSE_BYTES = 16
# A response: x, y | z, who asked, a tag; each disguised, since programs may not look into it.
_DISGUISE = np.array([0x9D2C5680, 0xEFC60000, 0x5BD1E995, 0x7FEB352D], np.uint32)
_GRANTED, _REFUSED = 0xC1C0FFEE, 0xC1C0DEAD
_MULTICAST = "multicast::cluster::all"


def _encode(origin: Dim3 | None, rank: int) -> NDArray[np.uint8]:
    x, y, z = origin or (0xFBAD, 0xFBAD, 0xFBAD)
    words = np.array([x, y, z | rank << 16, _GRANTED if origin else _REFUSED], np.uint32)
    return (words ^ _DISGUISE).view(np.uint8)


@handles("clusterlaunchcontrol.try_cancel")
def _try_cancel(instruction: Instruction, program: Program) -> Handler:
    wanted = ["try_cancel", "async", "mbarrier::complete_tx::bytes", "b128"]
    if [m for m in instruction.modifiers if m not in ("shared::cta", _MULTICAST)] != wanted:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    target, signal = address(instruction.operands[0]), address(instruction.operands[1])
    multicast = _MULTICAST in instruction.modifiers

    def run(warp: Warp, mask: Mask) -> None:
        for lane in lanes_of(mask):
            _request(warp, lane, instruction, int(target(warp)[lane]), int(signal(warp)[lane]), multicast)

    return run


def _request(warp: Warp, lane: int, instruction: Instruction, to: int, signal: int, multicast: bool) -> None:
    cta, cluster, name = warp.cta, warp.cta.cluster, instruction.name
    if warp.machine.architecture.major < 10:
        raise EmulationError("unknown-instruction", f"{name} exists from sm_100 on")
    if cta.saw_refusal:
        raise EmulationError(
            "launch-control",
            f"{name} after this CTA has seen that an earlier one failed, which is undefined; ask no more after that",
        )
    to, signal = warp.shared_address(to), warp.shared_address(signal)
    if to % RESPONSE_BYTES:
        raise EmulationError(
            "misaligned", f"{name} to {to:#x}; a response needs a multiple of {RESPONSE_BYTES}", address=to
        )
    for what, where in (("response", to), ("mbarrier", signal)):
        if cluster.at_address(where)[0] is not cta:
            raise EmulationError(
                "out-of-range", f"{name} with its {what} in another CTA, at {where:#x}", address=where
            )
    if multicast and (gone := [other.rank for other in cluster.ctas if all(w.done for w in other.warps)]):
        raise EmulationError("launch-control", f"{name} to the cluster, of which CTA {gone[0]} has ended")
    everyone = (1 << cluster.size) - 1 if multicast else 1 << cta.rank
    answer = _Answer(warp)
    for other, barrier in bulk_destinations(warp, name, to, signal, everyone):
        _respond(warp, lane, instruction, answer, other, to & OFFSET_MASK, barrier)


class _Answer:
    """What a request comes to: settled when the first response lands."""

    def __init__(self, warp: Warp) -> None:
        self._grid, self._rank = warp.machine.grid, warp.cta.rank
        self._bytes: NDArray[np.uint8] | None = None

    def bytes(self) -> NDArray[np.uint8]:
        if self._bytes is None:
            self._bytes = _encode(self._grid.cancel(), self._rank)
        return self._bytes


def _respond(
    warp: Warp, lane: int, instruction: Instruction, answer: _Answer, cta: Cta, offset: int, barrier: MBarrier
) -> None:
    """Puts one CTA's copy of the response under way."""
    cta.shared.check(offset, offset + RESPONSE_BYTES, instruction.name)
    chunks = chunks_of_run(offset, RESPONSE_BYTES, cta.shared.granule)
    issue_load(warp, lane, instruction, cta, chunks, barrier)

    def land() -> None:
        cta.shared.bytes[offset : offset + RESPONSE_BYTES] = answer.bytes()
        barrier.end_transfer(RESPONSE_BYTES)
        warp.machine.events += 1

    warp.machine.events += 1
    warp.machine.report.count("clusterlaunchcontrol.try_cancel")
    warp.machine.engine.submit(
        object(), Operation(instruction.name, land, warp.program.place(warp, instruction))
    )


@handles("clusterlaunchcontrol.query_cancel")
def _query_cancel(instruction: Instruction, program: Program) -> Handler:
    query = instruction.modifiers[1:]
    response = read(instruction.operands[1], "b128")
    if query == ("is_canceled", "pred", "b128"):
        put = write(instruction.operands[0])
        return lambda warp, mask: put(warp, _is_canceled(warp, mask, response(warp)), mask)
    axes: tuple[int, ...] = (0, 1, 2)
    if query == ("get_first_ctaid", "v4", "b32", "b128"):
        targets = items(instruction.operands[0])[:3]
    elif query[1:] == ("b32", "b128") and query[0] in [f"get_first_ctaid::{axis}" for axis in "xyz"]:
        axes, targets = ("xyz".index(query[0][-1]),), [instruction.operands[0]]
    else:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    puts = [write(target) for target in targets]

    def run(warp: Warp, mask: Mask) -> None:
        words = _words(warp, response(warp))
        if (active(words[3], mask) != _GRANTED).any():
            _undefined(warp, instruction)
        for axis, put in zip(axes, puts, strict=True):
            put(warp, words[axis] & np.uint32(0xFFFF) if axis == 2 else words[axis], mask)

    return run


def _undefined(warp: Warp, instruction: Instruction) -> None:
    """NVIDIA's own compiler moves the query ahead of the branch on is_canceled, so it can be tolerated."""
    what = f"{instruction.name} of a request that failed"
    if "clusterlaunchcontrol" not in warp.machine.tolerate:
        raise EmulationError("launch-control", f"{what} is undefined; guard it with is_canceled")
    warp.machine.warn(f"{warp.program.source(instruction)}: {what} (tolerated)")


def _is_canceled(warp: Warp, mask: Mask, response: NDArray[Any]) -> NDArray[np.bool_]:
    words = _words(warp, response)
    refused = active(words[3], mask) == _REFUSED
    if not (refused | (active(words[3], mask) == _GRANTED)).all():
        raise EmulationError("launch-control", "query_cancel of 16 bytes that no try_cancel wrote")
    if (active(words[2], mask)[refused] >> np.uint32(16) == warp.cta.rank).any():
        warp.cta.saw_refusal = True
    granted: NDArray[np.bool_] = words[3] == _GRANTED
    return granted


def _words(warp: Warp, response: NDArray[Any]) -> NDArray[np.uint32]:
    """The four words of 32 lanes' responses, undisguised."""
    return response.view(np.uint32).reshape(LANES, 4).T ^ _DISGUISE[:, None]


@handles("ld.shared.b128", "ld.shared::cta.b128")
def _load_wide(instruction: Instruction, program: Program) -> Handler:
    target, where = instruction.operands[0], address(instruction.operands[1])
    if not isinstance(target, Register) or target.type != "b128":
        raise PtxError(f"the destination {target!r} of {instruction.name} is no register of 128 bits")

    def run(warp: Warp, mask: Mask) -> None:
        addresses = active(where(warp), mask)
        check_alignment(addresses, WIDE.itemsize, instruction.opcode)
        low, high = load(warp, mask, "shared", addresses, 8, 2)
        value = join(spread(low, mask), spread(high, mask))
        warp.registers[target.index] = (
            value if mask is None else merge(mask, value, warp.registers[target.index])
        )

    return run
