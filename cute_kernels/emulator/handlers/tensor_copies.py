"""Tensor copies (TMA) in tiled mode (PTX ISA, "cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import tensor_map, tma_box, tma_reduce
from cute_kernels.emulator.clocks import BULK
from cute_kernels.emulator.cta import Cta
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.bulk import (
    LOAD_TARGETS,
    BulkOperation,
    issue_load,
    issue_read,
    lanes_of,
    reads_global,
    submit,
    submit_write,
    warn_of_repetition,
    writes_global,
)
from cute_kernels.emulator.handlers.registry import address, handles, read
from cute_kernels.emulator.handlers.tensor_maps import check_acquired, reads_map
from cute_kernels.emulator.memory import OFFSET_MASK, PARAM_WINDOW, RANK_SHIFT, WINDOW_MASK
from cute_kernels.emulator.ptx import Address, Instruction, PtxError
from cute_kernels.emulator.shared_chunks import Chunks, chunks_of_box
from cute_kernels.emulator.tma_box import BoxPlan, TensorCopyError
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Handler, Program

DESCRIPTOR_BYTES = 128


def _descriptor(warp: Warp, where: int) -> bytes:
    """The 128 bytes of a tensor map, in the kernel's parameters or in global memory."""
    if where % 64:
        raise EmulationError(
            "misaligned", f"a tensor map at {where:#x}; it is aligned to 64 bytes", address=where
        )
    if where >= PARAM_WINDOW:
        at = where & WINDOW_MASK
        return warp.machine.params[at : at + DESCRIPTOR_BYTES].tobytes()
    if where < warp.program.param_bytes:
        return warp.machine.params[where : where + DESCRIPTOR_BYTES].tobytes()
    check_acquired(warp, where)
    return warp.machine.memory.read_bytes(where, DESCRIPTOR_BYTES).tobytes()


class _Tensor:
    """The `[map, {coordinates}]` operand."""

    def __init__(self, operand: Any, instruction: Instruction) -> None:
        if not isinstance(operand, Address) or operand.coordinates is None:
            raise PtxError(f"{instruction.name} without tensor coordinates")
        if any(m.startswith(("im2col", "tile::")) for m in instruction.modifiers):
            raise PtxError(
                f"the instruction {instruction.name} is not modelled; tensor copies are modelled in tiled mode"
            )
        self._where = address(Address(operand.base, operand.offset))
        self._coordinates = [read(c) for c in operand.coordinates]

    def operands(self, warp: Warp) -> list[NDArray[Any]]:
        """What tells one copy from another, in 32 lanes each."""
        return [self._where(warp), *(c(warp) for c in self._coordinates)]

    def where(self, warp: Warp, lane: int) -> int:
        """The address of the map."""
        return int(self._where(warp).item(lane))

    def plan(self, warp: Warp, lane: int, storing: bool) -> tuple[bytes, BoxPlan]:
        data = _descriptor(warp, self.where(warp, lane))
        given = [int(c(warp).item(lane)) for c in self._coordinates]
        coordinates = tuple(value - (value >> 31 << 32) for value in given)  # signed, of 32 bits
        try:
            plan = (tma_box.store_plan if storing else tma_box.load_plan)(data, coordinates)
        except (TensorCopyError, tensor_map.TensorMapError) as fault:
            raise EmulationError("descriptor", str(fault)) from None
        return data, plan


def _view(warp: Warp) -> tma_box.View:
    """Global memory at a plan's addresses, bounds checked."""

    def view(plan: BoxPlan) -> NDArray[np.uint8]:
        low, high = plan.reach()
        memory = warp.machine.memory.read_bytes(low, high - low)
        return np.ndarray(plan.shape, np.uint8, memory, strides=plan.strides)

    return view


def _chunks(data: bytes, offset: int, cta: Cta) -> Chunks:
    try:
        return chunks_of_box(data, offset, cta.shared.granule)
    except TensorCopyError as fault:
        raise EmulationError("misaligned", str(fault), address=offset) from None


@handles("cp.async.bulk.tensor")
def _tensor_copy(instruction: Instruction, program: Program) -> Handler:
    if instruction.modifiers[4] in LOAD_TARGETS:
        return _tensor_load(instruction)
    return _tensor_store(instruction, None)


@handles("cp.reduce.async.bulk.tensor")
def _tensor_reduce(instruction: Instruction, program: Program) -> Handler:
    operation = next(m for m in instruction.modifiers if m in tma_reduce.REDUCTIONS)
    return _tensor_store(instruction, operation)


def _tensor_load(instruction: Instruction) -> Handler:
    target, tensor = address(instruction.operands[0]), _Tensor(instruction.operands[1], instruction)
    barrier_at = address(instruction.operands[2])
    multicast = "multicast::cluster" in instruction.modifiers
    ranks = read(instruction.operands[3], "b16") if multicast else None
    pair_signal = "cta_group::2" in instruction.modifiers

    def run(warp: Warp, mask: Mask) -> None:
        lanes = lanes_of(mask)
        if len(lanes) > 1:
            same = [*tensor.operands(warp), target(warp)]
            warn_of_repetition(warp, mask, instruction, "tensor copy", same)
        for lane in lanes:
            data, plan = tensor.plan(warp, lane, storing=False)
            to = warp.shared_address(int(target(warp)[lane]))
            signal = warp.shared_address(int(barrier_at(warp)[lane]))
            bits = None if ranks is None else int(ranks(warp)[lane])
            found = _destinations(warp, to, signal, bits, pair_signal)
            # Any barrier's bytes say that the map has been read; the issuing CTA's is the one that it can wait for.
            told = next((barrier for cta, barrier in found if cta is warp.cta), found[0][1])
            reads_map(warp, lane, tensor.where(warp, lane), told.slot, told.time)
            for cta, barrier in found:
                _load_box(warp, lane, instruction, data, plan, cta, to & OFFSET_MASK, barrier)

    return run


def _destinations(
    warp: Warp, to: int, signal: int, bits: int | None, pair_signal: bool
) -> list[tuple[Cta, MBarrier]]:
    """The CTAs that a load writes, each with the barrier that it signals there."""
    cluster = warp.cta.cluster
    name = "cp.async.bulk.tensor"
    if bits is None:
        cta, _ = cluster.at_address(to)
        owner, offset = cluster.at_address(signal)
        if owner is not cta and not (pair_signal and owner.rank >> 1 == cta.rank >> 1):
            raise EmulationError(
                "barrier", f"{name} writes CTA rank {cta.rank} and signals a barrier of rank {owner.rank}"
            )
        return [(cta, owner.mbarrier(offset, name))]
    if not bits or bits >> cluster.size:
        raise EmulationError(
            "out-of-range", f"a multicast mask of {bits:#x} in a cluster of {cluster.size} CTAs"
        )
    found = []
    for cta in cluster.ctas:
        if bits >> cta.rank & 1:
            owner = cta
            if pair_signal:  # the pair's even or odd CTA, as the barrier's own address is
                owner = cluster.ctas[(cta.rank & ~1) | (signal >> RANK_SHIFT & 1)]
            found.append((cta, owner.mbarrier(signal & OFFSET_MASK, name)))
    return found


def _load_box(
    warp: Warp,
    lane: int,
    instruction: Instruction,
    data: bytes,
    plan: BoxPlan,
    cta: Cta,
    offset: int,
    barrier: MBarrier,
) -> None:
    chunks = _chunks(data, offset, cta)
    cta.shared.check(chunks.low, chunks.high, instruction.name)
    issue_load(warp, lane, instruction, cta, chunks, barrier)
    reads_global(warp, lane, barrier, plan)
    defined = tma_box.defined_bytes(data)

    def land() -> None:
        _, image = tma_box.to_shared(data, tma_box.load_image(plan, _view(warp)), offset)
        chunks.scatter(cta, image, defined)
        barrier.end_transfer(plan.geometry.transaction_nbytes)
        warp.machine.events += 1

    submit(warp, instruction, land)


def _tensor_store(instruction: Instruction, operation: str | None) -> Handler:
    tensor, source = _Tensor(instruction.operands[0], instruction), address(instruction.operands[1])

    def run(warp: Warp, mask: Mask) -> None:
        lanes = lanes_of(mask)
        same = [*tensor.operands(warp), source(warp)] if len(lanes) > 1 else []
        repeated = warn_of_repetition(warp, mask, instruction, "tensor copy", same)
        for i, lane in enumerate(lanes):
            data, plan = tensor.plan(warp, lane, storing=True)
            at = warp.shared_address(int(source(warp)[lane])) & OFFSET_MASK
            if operation is not None:
                _check_reduction(operation, plan)
            chunks = _chunks(data, at, warp.cta)
            warp.cta.shared.check(chunks.low, chunks.high, instruction.name)
            if not (repeated and i):  # one copy that lanes repeat does not race with itself
                image = chunks.gather(warp.cta)
                writes_global(warp, lane, instruction, plan, image, operation is not None)
            bulk = _store(warp, instruction, lane, chunks, plan, operation)
            # Waiting for the read of a bulk group includes that of the map (PTX ISA, "cp.async.bulk.wait_group").
            reads_map(warp, lane, tensor.where(warp, lane), warp.cta.slot(warp.index, BULK), bulk.time)

    return run


def _check_reduction(operation: str, plan: BoxPlan) -> None:
    try:
        tma_reduce.check_reduction(operation, plan.geometry.tensor_map.dtype)
    except TensorCopyError as fault:
        raise EmulationError("descriptor", str(fault)) from None


def _store(
    warp: Warp,
    instruction: Instruction,
    lane: int,
    chunks: Chunks,
    plan: BoxPlan,
    operation: str | None,
) -> BulkOperation:
    cta = warp.cta
    bulk = issue_read(warp, lane, chunks.region)

    def read_shared() -> None:
        image = chunks.gather(cta)
        bulk.has_read()

        def write_global() -> None:
            if operation is None:
                tma_box.store_image(plan, image, _view(warp))
            else:
                tma_reduce.reduce_image(plan, image, operation, _view(warp))
            bulk.has_written()
            warp.machine.events += 1

        submit_write(warp, instruction, write_global)

    submit(warp, instruction, read_shared)
    return bulk
