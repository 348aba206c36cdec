"""Tensor maps that a kernel changes (PTX ISA, "tensormap.replace", "tensormap.cp_fenceproxy", "membar, fence").

Tensor copies read a map in global memory through the tensormap proxy. What the launch wrote of it counts for a CTA from
the CTA's fence.proxy.tensormap::generic.acquire of that map on. A copy reads its map at any time until it completes,
so to change one that a copy may still be reading is a race.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import tensor_map
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.global_cells import Lanes, Run
from cute_kernels.emulator.global_order import Strength, strength
from cute_kernels.emulator.handlers.loads import check_alignment, resolve, space_of
from cute_kernels.emulator.handlers.registry import address, handles, read, uniform
from cute_kernels.emulator.handlers.tensor_memory import whole_warp
from cute_kernels.emulator.lanes import ONE_LANE
from cute_kernels.emulator.memory import OFFSET_MASK, PARAM_WINDOW
from cute_kernels.emulator.ptx import Immediate, Instruction, PtxError
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.shadow import COLLECTIVE, SEVERAL
from cute_kernels.emulator.tensor_map_replace import REPLACEABLE, replaced
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program

NBYTES = tensor_map.NBYTES
_USED = tensor_map.HARDWARE_NBYTES  # kernels leave the rest of a map in shared memory as it is
_ALIGNMENT = 64


@handles("tensormap.replace")
def _replace(instruction: Instruction, program: Program) -> Handler:
    mode, field = instruction.modifiers[1:3]
    operands = list(instruction.operands)
    if mode != "tile" or field not in REPLACEABLE or "b1024" not in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    where, space = address(operands[0]), space_of(instruction)
    ordinal = operands[1].integer() if len(operands) == 3 and isinstance(operands[1], Immediate) else 0
    value = read(operands[-1], instruction.modifiers[-1])

    def run(warp: Warp, mask: Mask) -> None:
        lanes = range(LANES) if mask is None else np.flatnonzero(mask).tolist()
        for lane in lanes:
            at = where(warp)[lane : lane + 1]
            check_alignment(at, _ALIGNMENT, instruction.name)
            found, at = resolve(at) if space == "generic" else (space, at)
            new = int(value(warp)[lane])
            if found == "shared":
                _replace_shared(warp, lane, int(at[0]) & OFFSET_MASK, field, ordinal, new)
            else:
                _replace_global(warp, lane, at, field, ordinal, new)
        warp.machine.events += 1

    return run


def _replaced(data: NDArray[np.uint8], field: str, ordinal: int, value: int) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(replaced(data.tobytes(), field, ordinal, value), np.uint8)
    except tensor_map.TensorMapError as fault:
        raise EmulationError("descriptor", str(fault)) from None


def _replace_shared(warp: Warp, lane: int, offset: int, field: str, ordinal: int, value: int) -> None:
    cta = warp.cta
    cta.shared.check(offset, offset + NBYTES, "tensormap.replace")
    where, access = cta.shared.granules(offset, _USED), warp.order.access(ONE_LANE[lane])
    codes = np.full(where.stop - where.start, lane, np.int8)
    cta.shared_read(where, access, warp.generic_slot, warp.epoch, codes)
    cta.shared_write(where, access, warp.generic_slot, warp.epoch, codes)
    data = cta.shared.bytes[offset : offset + NBYTES]
    data[:] = _replaced(data, field, ordinal, value)


def _replace_global(
    warp: Warp, lane: int, at: NDArray[np.uint64], field: str, ordinal: int, value: int
) -> None:
    data, shadow = warp.machine.memory.read_bytes(int(at[0]), NBYTES), warp.machine.global_shadow
    touched = Lanes(at, NBYTES, np.array([lane], np.int8))
    shadow.read(shadow.generic(warp, ONE_LANE[lane]), touched)
    shadow.write(shadow.generic(warp, ONE_LANE[lane]), touched)
    data[:] = _replaced(data, field, ordinal, value)
    shadow.order.changed(int(at[0]))


@handles("tensormap.cp_fenceproxy")
def _copy(instruction: Instruction, program: Program) -> Handler:
    """Copies a map to global memory and releases it to the tensormap proxy, by the whole warp."""
    target, source = address(instruction.operands[0]), address(instruction.operands[1])
    how = Strength(True, releases=True, scope=strength(instruction).scope)

    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        to = np.array([uniform(target(warp), mask, "the address")], np.uint64)
        offset = uniform(source(warp), mask, "the address") & OFFSET_MASK
        check_alignment(to, NBYTES, instruction.name)
        cta, shadow = warp.cta, warp.machine.global_shadow
        cta.shared.check(offset, offset + NBYTES, instruction.name)
        where = cta.shared.granules(offset, _USED)
        codes = np.full(where.stop - where.start, COLLECTIVE, np.int8)
        cta.shared_read(where, warp.order.access(mask), warp.generic_slot, warp.epoch, codes)
        shadow.write(shadow.generic(warp, mask), Lanes(to, NBYTES, np.array([SEVERAL], np.int8)))
        warp.machine.memory.read_bytes(int(to[0]), NBYTES)[:] = cta.shared.bytes[offset : offset + NBYTES]
        warp.words.tell(to, mask, how, keeps=False)
        shadow.order.changed(int(to[0]))
        warp.machine.events += 1

    return run


@handles("fence.proxy.tensormap::generic")
def _fence(instruction: Instruction, program: Program) -> Handler:
    scope = strength(instruction).scope
    if "release" in instruction.modifiers:
        return lambda warp, mask: warp.words.fence(mask, scope)
    where = address(instruction.operands[0])
    how = Strength(True, acquires=True, scope=scope)

    def run(warp: Warp, mask: Mask) -> None:
        at = np.array([uniform(where(warp), mask, "the address")], np.uint64)
        shadow = warp.machine.global_shadow
        lanes = np.arange(LANES) if mask is None else np.flatnonzero(mask)
        warp.words.hear(np.repeat(at, len(lanes)), mask, how)
        by = lanes[0] if len(lanes) == 1 else SEVERAL
        shadow.read(shadow.generic(warp, mask), Lanes(at, NBYTES, np.array([by], np.int8)))
        version = shadow.order.versions.get(int(at[0]))
        if version is not None:
            warp.cta.tensor_maps[int(at[0])] = version

    return run


def check_acquired(warp: Warp, where: int) -> None:
    """Refuses a tensor copy by a map in global memory that the launch changed, before the CTA's fence."""
    version = warp.machine.global_shadow.order.versions.get(where)
    if version is not None and warp.cta.tensor_maps.get(where) != version:
        raise EmulationError(
            "missing-proxy-fence",
            f"the tensor map at {where:#x} has been changed, and this CTA has not executed "
            "fence.proxy.tensormap::generic.acquire for it since",
            address=where,
        )


def reads_map(warp: Warp, lane: int, where: int, slot: int, time: int) -> None:
    """Records that a tensor copy reads a map, if it lies in global memory, until `slot` of the CTA reaches `time`.

    That it reads what the launch wrote last is `check_acquired`'s to see.
    """
    if where < PARAM_WINDOW and where >= warp.program.param_bytes:
        shadow = warp.machine.global_shadow
        shadow.note_read(shadow.asynchronous(warp, lane, slot, time), Run(where, NBYTES))
