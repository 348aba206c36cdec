"""Loads and stores of shared memory by a whole warp that follow one another in a block, executed as one.

What depends on addresses alone is worked out once for each set of them: kernels come back to the same ones with every
stage of a pipeline. Only accesses that are beyond suspicion are joined. All others are executed by the instructions'
own handlers one after another, and so are their faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import READY
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.registry import items, width_of
from cute_kernels.emulator.lanes import LANE_CODES
from cute_kernels.emulator.memory import OFFSET_MASK, RANK_SHIFT
from cute_kernels.emulator.ptx import Address, Instruction, Register
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.shadow import SEVERAL, Region

if TYPE_CHECKING:
    from cute_kernels.emulator.cta import SharedMemory
    from cute_kernels.emulator.program import Handler
    from cute_kernels.emulator.shadow import Codes
    from cute_kernels.emulator.warp import Warp

_PLAIN = {"shared", "shared::cta", "shared::cluster", "weak", "v2", "v4"}
_MOST_PATTERNS = 4096  # sets of addresses that are remembered


class Form(NamedTuple):
    """A load or store that can be joined with others of its kind and size.

    base, offset: of its address. registers: its destinations or sources, each of `width` bytes.
    """

    load: bool
    width: int
    base: int
    offset: int
    registers: tuple[int, ...]

    @property
    def key(self) -> tuple[str, int, int]:
        """What those that may be joined have in common."""
        return "ld" if self.load else "st", self.width, len(self.registers)


def form(instruction: Instruction) -> Form | None:
    """The form of a load or store of shared memory without special semantics; None for all other instructions."""
    if instruction.opcode not in ("ld", "st") or len(instruction.operands) != 2:
        return None
    *modifiers, type = instruction.modifiers
    where, values = instruction.operands[:: 1 if instruction.opcode == "st" else -1]
    plain = "shared" in "".join(modifiers) and set(modifiers) <= _PLAIN and type[0] in "bufs"
    if not plain or not isinstance(where, Address) or not isinstance(where.base, Register):
        return None
    registers = items(values)
    if any(not isinstance(r, Register) or r.type == "pred" for r in registers):
        return None
    bits = width_of(type)
    if bits not in (16, 32, 64) or any(width_of(r.type) != bits for r in registers):
        return None
    if len(registers) != next((int(m[1:]) for m in modifiers if m in ("v2", "v4")), 1):
        return None
    if width_of(where.base.type) != 32 or len({r.index for r in registers}) < len(registers):
        return None
    return Form(
        instruction.opcode == "ld",
        bits // 8,
        where.base.index,
        where.offset,
        tuple(r.index for r in registers),
    )


class _Pattern(NamedTuple):
    """What a set of addresses touches, [instructions, lanes] of them in one CTA's window."""

    rank: int
    low: int
    high: int
    eighths: NDArray[np.int64]  # the 8 bytes that each access starts in, where an mbarrier may be
    region: Region
    parts: list[NDArray[np.int64]]  # the granules of each instruction
    codes: Codes  # the lane of each granule, SEVERAL where several lanes touch it
    elements: NDArray[np.int64]  # [instructions * registers, lanes] of them
    distinct: bool  # whether no granule is touched twice


class Joined:
    """Some instructions of one form's key, with their places in the kernel and their own handlers."""

    def __init__(self, places: Sequence[tuple[int, Instruction, Handler]]) -> None:
        self._places = places
        self._forms = forms = [found for _, one, _ in places if (found := form(one)) is not None]
        self._load, self._width, self._count = forms[0].load, forms[0].width, len(forms[0].registers)
        self._registers = [index for one in forms for index in one.registers]
        bases = [one.base for one in forms]
        self._bases = list(dict.fromkeys(bases))
        self._base_of = np.array([self._bases.index(base) for base in bases])
        self._offsets = np.array([one.offset & 0xFFFFFFFF for one in forms], dtype=np.uint32)[:, None]
        self._patterns: dict[tuple[int, bytes], _Pattern | None] = {}

    def __call__(self, warp: Warp) -> None:
        registers = warp.registers
        if len(self._bases) == 1:
            key = registers[self._bases[0]].tobytes()
        else:
            key = b"".join([registers[base].tobytes() for base in self._bases])
        shared = warp.cta.shared
        try:
            pattern = self._patterns[shared.nbytes, key]
        except KeyError:
            pattern = self._remember(warp, key)
        if pattern is None or not (self._loaded if self._load else self._stored)(warp, pattern):
            self._one_by_one(warp)

    def _loaded(self, warp: Warp, pattern: _Pattern) -> bool:
        shared = self._shared(warp, pattern)
        if shared is None:
            return False
        known, slot = warp.order.access(None).known, warp.generic_slot
        shadow = shared.shadow
        if not shadow.settled(pattern.region, known, slot, pattern.codes):
            return False
        shadow.note_read(pattern.region, known, slot, warp.order.epoch, pattern.codes)
        self._log("read", warp, shared, pattern)
        registers = warp.registers
        for index, values in zip(self._registers, shared.view(self._width)[pattern.elements], strict=True):
            registers[index] = values
        return True

    def _stored(self, warp: Warp, pattern: _Pattern) -> bool:
        shared = self._shared(warp, pattern)
        if shared is None or not pattern.distinct:
            return False
        registers = warp.registers
        values = np.array([registers[index] for index in self._registers])
        access, slot = warp.order.access(None), warp.generic_slot
        shadow = shared.shadow
        if not shadow.overwritable(pattern.region, access.known, slot, access.clock[READY], pattern.codes):
            return False
        shadow.note_write(pattern.region, slot, warp.order.epoch, pattern.codes)
        self._log("write", warp, shared, pattern)
        shared.view(self._width)[pattern.elements] = values
        warp.machine.events += 1
        return True

    def _shared(self, warp: Warp, pattern: _Pattern) -> SharedMemory | None:
        """The memory that is touched; None where that is none, or may hold an mbarrier."""
        cluster = warp.cta.cluster
        if pattern.rank >= cluster.size:
            return None
        shared = cluster.ctas[pattern.rank].shared
        low, high = shared.barriers
        if low < pattern.high and pattern.low < high and shared.barrier_bytes[pattern.eighths].any():
            return None
        return shared

    def _log(self, kind: str, warp: Warp, shared: SharedMemory, pattern: _Pattern) -> None:
        events, slot = shared.shadow.events, warp.generic_slot
        events.extend(
            (kind, where, slot, warp, at)
            for (at, _, _), where in zip(self._places, pattern.parts, strict=True)
        )
        warp.running.pc = self._places[-1][0]

    def _one_by_one(self, warp: Warp) -> None:
        for at, instruction, handler in self._places:
            warp.running.pc = at
            try:
                handler(warp, None)
            except EmulationError as fault:
                raise fault.located(warp.program.place_of(warp, None, instruction, fault.address)) from None

    # --- patterns -----------------------------------------------------------------------------------------------

    def _remember(self, warp: Warp, key: bytes) -> _Pattern | None:
        if len(self._patterns) >= _MOST_PATTERNS:
            self._patterns.clear()
        found = self._patterns[warp.cta.shared.nbytes, key] = self._pattern(warp)
        return found

    def _pattern(self, warp: Warp) -> _Pattern | None:
        """What the instructions touch; None where some lie outside shared memory, misaligned, or in several CTAs."""
        shared, nbytes = warp.cta.shared, self._width * self._count
        bases = np.array([warp.registers[base] for base in self._bases])
        addresses = (bases[self._base_of] + self._offsets).astype(np.int64)
        offsets = (addresses & OFFSET_MASK).ravel()
        ranks = addresses >> RANK_SHIFT
        low, high = int(offsets.min()), int(offsets.max()) + nbytes
        outside = low < shared.reserved or high > shared.nbytes
        if outside or (offsets % nbytes).any() or ranks.min() != ranks.max():
            return None
        where = shared.granules_at(offsets, nbytes)
        each = where.size // offsets.size
        codes = np.tile(LANE_CODES.repeat(each), len(self._forms))
        order = np.argsort(where, kind="stable")
        again = np.flatnonzero(where[order][1:] == where[order][:-1])
        differ = codes[order[again]] != codes[order[again + 1]]
        codes[np.isin(where, where[order[again[differ]]])] = SEVERAL
        elements = offsets.reshape(-1, 1, LANES) // self._width + np.arange(self._count)[:, None]
        return _Pattern(
            int(ranks[0, 0]),
            low,
            high,
            offsets // 8,
            shared.shadow.region(where),
            list(where.reshape(len(self._forms), -1)),
            codes,
            elements.reshape(-1, LANES),
            not len(again),
        )
