"""ld and st in every state space (PTX ISA, "Data Movement and Conversion Instructions: ld, st")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.global_order import WEAK, Strength, strength
from cute_kernels.emulator.global_shadow import OverwriteError
from cute_kernels.emulator.handlers.registry import active, address, handles, items, read, width_of, write
from cute_kernels.emulator.lanes import LANE_CODES, ONE_LANE
from cute_kernels.emulator.memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, UNSIGNED, WINDOW_MASK
from cute_kernels.emulator.ptx import Immediate, Instruction, PtxError, Symbol
from cute_kernels.emulator.registers import LANES, STORAGE

if TYPE_CHECKING:
    from cute_kernels.emulator.cta import Cta
    from cute_kernels.emulator.program import Handler, Program
    from cute_kernels.emulator.shadow import Codes
    from cute_kernels.emulator.warp import Mask, Warp

_SPACES = ("global", "shared", "shared::cta", "shared::cluster", "param", "param::entry", "local", "const")
_MOST_IN_BULK = 1 << 24  # bytes that st.bulk takes
Elements = list[NDArray[Any]]


def space_of(instruction: Instruction) -> str:
    """The state space that the instruction names, "generic" if none."""
    for space in _SPACES:
        if space in instruction.modifiers:
            return space.split("::")[0] if space != "shared::cluster" else "shared"
    return "generic"


def _element_type(instruction: Instruction) -> tuple[str, int]:
    """The type and the number of elements a lane moves."""
    count = next((int(m[1:]) for m in instruction.modifiers if m in ("v2", "v4", "v8")), 1)
    return instruction.modifiers[-1], count


def check_alignment(addresses: NDArray[np.uint64], nbytes: int, what: str) -> None:
    """Refuses addresses that are no multiples of the access size, as the hardware does."""
    low = addresses & np.uint64(nbytes - 1)
    if low.any():
        bad = int(addresses[int(np.argmax(low != 0))])
        raise EmulationError("misaligned", f"{what} of {nbytes} bytes at {bad:#x}", address=bad)


@handles("ld", "ldu")
def _ld(instruction: Instruction, program: Program) -> Handler:
    space = space_of(instruction)
    type, count = _element_type(instruction)
    bits = width_of(type)
    width = bits // 8
    destinations = items(instruction.operands[0])
    if len(destinations) != count:
        raise PtxError(f"{instruction.name} with {len(destinations)} destinations")
    puts = [_extending(write(d), type, getattr(d, "type", type)) for d in destinations]
    if _of_call(instruction.operands[1], program):

        def nothing(warp: Warp, mask: Mask) -> None:
            for put in puts:
                put(warp, np.zeros(LANES, UNSIGNED[width]), mask)

        return nothing
    where, how = address(instruction.operands[1]), strength(instruction)

    def run(warp: Warp, mask: Mask) -> None:
        addresses = active(where(warp), mask)
        if space == "global":
            warp.touch_global(instruction)
        check_alignment(addresses, width * count, instruction.opcode)
        values = load(warp, mask, space, addresses, width, count, how)
        for put, value in zip(puts, values, strict=True):
            put(warp, spread(value, mask), mask)

    return run


@handles("st")
def _st(instruction: Instruction, program: Program) -> Handler:
    space = space_of(instruction)
    type, count = _element_type(instruction)
    width = width_of(type) // 8
    sources = [read(item, type) for item in items(instruction.operands[1])]
    if len(sources) != count:
        raise PtxError(f"{instruction.name} with {len(sources)} sources")
    if _of_call(instruction.operands[0], program):
        return lambda warp, mask: None
    where, how = address(instruction.operands[0]), strength(instruction)

    def run(warp: Warp, mask: Mask) -> None:
        addresses = active(where(warp), mask)
        if space == "global":
            warp.touch_global(instruction)
        check_alignment(addresses, width * count, instruction.opcode)
        values = [active(get(warp), mask).astype(UNSIGNED[width], copy=False) for get in sources]
        store(warp, mask, space, addresses, width, values, how)

    return run


@handles("st.bulk")
def _st_bulk(instruction: Instruction, program: Program) -> Handler:
    """Zeros, `size` bytes of shared memory, in a multiple of 8 (PTX ISA, "st.bulk")."""
    where, size, value = instruction.operands
    get, of_size = address(where), read(size)
    space = space_of(instruction)
    if not isinstance(value, Immediate) or value.integer():
        raise PtxError(f"{instruction.name} with another value than 0")

    def run(warp: Warp, mask: Mask) -> None:
        if warp.machine.architecture.major < 10:
            raise PtxError(f"{instruction.name} exists on sm_100 and later alone")
        addresses, sizes = active(get(warp), mask), active(of_size(warp), mask).astype(np.int64)
        check_alignment(addresses, 8, instruction.name)
        if (sizes % 8).any() or (sizes > _MOST_IN_BULK).any():
            told = f"{instruction.name} of {', '.join(map(str, np.unique(sizes)))} bytes"
            raise EmulationError("misaligned", f"{told}; multiples of 8 up to {_MOST_IN_BULK} are allowed")
        here = np.arange(LANES) if mask is None else np.flatnonzero(mask)
        for lane, at, nbytes in zip(here, addresses, sizes, strict=True):
            zeros: Elements = [np.zeros(1, np.uint64)] * int(nbytes // 8)
            store(warp, ONE_LANE[lane], space, np.array([at]), 8, zeros)

    return run


def _of_call(operand: Any, program: Program) -> bool:
    """Whether an address is a parameter or a result of a call, of which only printing is modelled (control.py)."""
    base = getattr(operand, "base", None)
    return isinstance(base, Symbol) and base.name in program.kernel.call_params


def spread(values: NDArray[Any], mask: Mask) -> NDArray[Any]:
    """Values of the executing lanes as 32 lanes."""
    if mask is None:
        return values
    full = np.zeros(LANES, dtype=values.dtype)
    full[mask] = values
    return full


def _extending(put: Callable[..., None], type: str, register: str) -> Callable[..., None]:
    """Loads narrower than the register extend the sign for signed types, with zeros otherwise."""
    if width_of(type) >= width_of(register) and width_of(type) != 8:
        return put
    if type.startswith("s"):
        signed = np.dtype(f"i{width_of(type) // 8}")
        wide = np.dtype(f"i{np.dtype(STORAGE[width_of(register)]).itemsize}")

        def sign_extended(warp: Warp, value: NDArray[Any], mask: Mask) -> None:
            put(warp, value.view(signed).astype(wide).view(f"u{wide.itemsize}"), mask)

        return sign_extended
    return put


def load(
    warp: Warp,
    mask: Mask,
    space: str,
    addresses: NDArray[np.uint64],
    width: int,
    count: int,
    how: Strength = WEAK,
) -> Elements:
    """`count` elements of `width` bytes at each address (of the executing lanes), checked and recorded."""
    if space == "generic":
        space, addresses = resolve(addresses)
    if space == "global":
        return _load_global(warp, mask, addresses, width, count, how)
    if space == "const":
        return warp.machine.memory.load(addresses, width, count)
    if space == "shared":
        return _load_shared(warp, mask, addresses, width, count)
    if space == "param":
        return _load_bytes(warp.machine.params, addresses, width, count, "the parameters")
    if space == "local":
        return _load_local(warp, mask, addresses, width, count)
    raise PtxError(f"loads from the {space} space are not modelled")


def store(
    warp: Warp,
    mask: Mask,
    space: str,
    addresses: NDArray[np.uint64],
    width: int,
    values: Elements,
    how: Strength = WEAK,
) -> None:
    """Writes values[j] at addresses + j * width, checked and recorded."""
    warp.machine.events += 1
    if space == "generic":
        space, addresses = resolve(addresses)
    if space == "global":
        _store_global(warp, mask, addresses, width, values, how)
    elif space == "shared":
        _store_shared(warp, mask, addresses, width, values)
    elif space == "local":
        _store_local(warp, mask, addresses, width, values)
    else:
        raise PtxError(f"stores to the {space} space are not modelled")


def resolve(addresses: NDArray[np.uint64]) -> tuple[str, NDArray[np.uint64]]:
    """The space that generic addresses mean and the addresses within it."""
    top = int(addresses[0]) & ~WINDOW_MASK
    if (addresses & np.uint64(~WINDOW_MASK & (2**64 - 1)) != np.uint64(top)).any():
        raise PtxError("one instruction accesses several state spaces through generic addresses")
    names = {0: "global", SHARED_WINDOW: "shared", LOCAL_WINDOW: "local", PARAM_WINDOW: "param"}
    if top not in names:
        raise EmulationError("out-of-range", f"generic address {int(addresses[0]):#x} lies in no state space")
    return names[top], addresses & np.uint64(WINDOW_MASK)


# --- global memory ------------------------------------------------------------------------------------------------


def _load_global(
    warp: Warp, mask: Mask, addresses: NDArray[np.uint64], width: int, count: int, how: Strength
) -> Elements:
    values: Elements = list(warp.machine.memory.load(addresses, width, count))
    if how.strong:
        warp.words.hear(addresses, mask, how)
    shadow = warp.machine.global_shadow
    shadow.read(shadow.generic(warp, mask, how.strong), shadow.lanes(addresses, width * count, mask))
    return values


def _store_global(
    warp: Warp, mask: Mask, addresses: NDArray[np.uint64], width: int, values: Elements, how: Strength
) -> None:
    shadow, memory = warp.machine.global_shadow, warp.machine.memory
    try:
        shadow.write(
            shadow.generic(warp, mask, how.strong), shadow.lanes(addresses, width * len(values), mask)
        )
    except OverwriteError:
        held = memory.load(addresses, width, len(values))
        if not all((old == new).all() for old, new in zip(held, values, strict=True)):
            raise
        source = warp.program.source(warp.program.kernel.instructions[warp.running.pc])
        warp.machine.warn(
            f"{source}: stores to global memory are not ordered after each other; all write the same value"
        )
    memory.store(addresses, width, values)
    if how.strong:
        warp.words.tell(addresses, mask, how, keeps=False)
    else:
        warp.words.overwrite(addresses)


# --- shared memory ------------------------------------------------------------------------------------------------


def shared_runs(
    warp: Warp, addresses: NDArray[np.uint64]
) -> list[tuple[Cta, NDArray[np.int64], NDArray[np.int64]]]:
    """The addresses by CTA: (CTA, offsets in it, positions in `addresses`)."""
    ranks = addresses >> np.uint64(24)
    first = int(ranks[0])
    offsets = (addresses & np.uint64(0xFFFFFF)).astype(np.int64)
    if (ranks == ranks[0]).all():
        cta, _ = warp.cta.cluster.at_address(first << 24)
        return [(cta, offsets, np.arange(len(addresses)))]
    runs = []
    for rank in np.unique(ranks):
        at = np.flatnonzero(ranks == rank)
        runs.append((warp.cta.cluster.at_address(int(rank) << 24)[0], offsets[at], at))
    return runs


def check_shared(cta: Cta, offsets: NDArray[np.int64], nbytes: int, what: str) -> None:
    """Refuses offsets outside the CTA's shared memory, or inside a live mbarrier."""
    cta.shared.check(int(offsets.min()), int(offsets.max()) + nbytes, what)
    if cta.mbarriers and cta.shared.barrier_bytes[offsets // 8].any():
        bad = int(offsets[cta.shared.barrier_bytes[offsets // 8]][0])
        raise EmulationError(
            "barrier", f"{what} touches the mbarrier at shared offset {bad & ~7:#x} as data", address=bad
        )


def lane_codes(mask: Mask, granules: int, at: NDArray[np.int64] | None = None) -> Codes:
    """The lanes of an access for the shadow state, `granules` for each; at: which of the executing lanes."""
    lanes = LANE_CODES if mask is None else np.flatnonzero(mask).astype(np.int8)
    if at is not None and len(at) != len(lanes):
        lanes = lanes[at]
    return lanes if granules == 1 else lanes.repeat(granules)


def _load_shared(warp: Warp, mask: Mask, addresses: NDArray[np.uint64], width: int, count: int) -> Elements:
    values: Elements = [np.zeros(len(addresses), dtype=UNSIGNED[width]) for _ in range(count)]
    for cta, offsets, at in shared_runs(warp, addresses):
        check_shared(cta, offsets, width * count, "a load")
        where = cta.shared.granules_at(offsets, width * count)
        lanes = lane_codes(mask, where.size // len(offsets), at)
        cta.shared_read(where, warp.order.access(mask), warp.generic_slot, warp.epoch, lanes)
        view = cta.shared.bytes.view(UNSIGNED[width])
        index = offsets // width
        for j in range(count):
            values[j][at] = view[index + j]
    return values


def _store_shared(
    warp: Warp, mask: Mask, addresses: NDArray[np.uint64], width: int, values: Elements
) -> None:
    for cta, offsets, at in shared_runs(warp, addresses):
        check_shared(cta, offsets, width * len(values), "a store")
        where = cta.shared.granules_at(offsets, width * len(values))
        lanes = lane_codes(mask, where.size // len(offsets), at)
        cta.shared_write(where, warp.order.access(mask), warp.generic_slot, warp.epoch, lanes)
        view = cta.shared.bytes.view(UNSIGNED[width])
        index = offsets // width
        for j, value in enumerate(values):
            view[index + j] = value[at]


# --- parameters and local memory ----------------------------------------------------------------------------------


def _load_bytes(
    source: NDArray[np.uint8], addresses: NDArray[np.uint64], width: int, count: int, name: str
) -> Elements:
    low, high = int(addresses.min()), int(addresses.max()) + width * count
    if high > len(source):
        raise EmulationError(
            "out-of-range", f"a load of bytes [{low}, {high}) of {name}, which have {len(source)}"
        )
    at = addresses.astype(np.int64)[:, None] + np.arange(width * count)
    elements = source[at].view(UNSIGNED[width])
    return [np.ascontiguousarray(elements[:, j]) for j in range(count)]


def _local_index(warp: Warp, mask: Mask, addresses: NDArray[np.uint64], nbytes: int) -> tuple[Any, Any]:
    if warp.local is None or int(addresses.max()) + nbytes > warp.local.shape[1]:
        raise EmulationError(
            "out-of-range", f"local memory address {int(addresses.max()):#x} lies outside the frame"
        )
    lanes = np.arange(LANES) if mask is None else np.flatnonzero(mask)
    return lanes[:, None], addresses.astype(np.int64)[:, None] + np.arange(nbytes)


def _load_local(warp: Warp, mask: Mask, addresses: NDArray[np.uint64], width: int, count: int) -> Elements:
    lanes, at = _local_index(warp, mask, addresses, width * count)
    assert warp.local is not None
    elements = np.ascontiguousarray(warp.local[lanes, at]).view(UNSIGNED[width])
    return [np.ascontiguousarray(elements[:, j]) for j in range(count)]


def _store_local(warp: Warp, mask: Mask, addresses: NDArray[np.uint64], width: int, values: Elements) -> None:
    lanes, at = _local_index(warp, mask, addresses, width * len(values))
    assert warp.local is not None
    warp.local[lanes, at] = np.stack(values, axis=1).view(np.uint8)
