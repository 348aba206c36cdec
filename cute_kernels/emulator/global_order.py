"""Order between the CTAs of a launch: what they tell each other through words of global memory.

A release (st.release, red.release, or a fence at gpu scope before a relaxed operation) writes down at its word what the
warp knows and did; an acquire that reads the word, or a fence behind a relaxed read of it, learns that. Operations that
read and write keep what the word told before, stores put their own in its place (PTX ISA, "Memory Consistency Model":
release and acquire patterns, observation order).

Vector clocks are those of one cluster. What a warp has learned from other clusters stands in a log of its own; its
HEARD slot counts the entries, so barriers within the cluster carry the news on as they carry everything else.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import ASYNC, GENERIC, HEARD, READY, SLOTS_A_WARP, SOME, Clock, SlotTable
from cute_kernels.emulator.lanes import ONE_LANE, Access, bits_of, covers
from cute_kernels.emulator.registers import LANES

if TYPE_CHECKING:
    from cute_kernels.emulator.ptx import Instruction
    from cute_kernels.emulator.warp import Mask, Warp

Knowledge = Mapping[int, Clock]  # by number of a cluster: rows READY and ASYNC of a clock of it

# Scopes: threads of one cluster (of one CTA too: not told apart), of one launch, of launches side by side.
LOCAL, GPU, SYSTEM = range(3)
_SCOPES = {"cta": LOCAL, "cluster": LOCAL, "gpu": GPU, "gl": GPU, "sys": SYSTEM}


class Strength(NamedTuple):
    """What an access of global memory takes part in.

    strong: it does not race with other strong accesses. scope: the threads that it acquires from and releases to.
    """

    strong: bool
    acquires: bool = False
    releases: bool = False
    scope: int = GPU


WEAK = Strength(False)


def strength(instruction: Instruction) -> Strength:
    """The strength of an ld, st, atom, red, membar or fence."""
    modifiers = set(instruction.modifiers)
    atomic = instruction.opcode in ("atom", "red")
    scope = next((_SCOPES[m] for m in instruction.modifiers if m in _SCOPES), GPU)
    return Strength(
        strong=atomic or bool(modifiers & {"relaxed", "acquire", "release", "acq_rel", "volatile", "mmio"}),
        acquires=bool(modifiers & {"acquire", "acq_rel"}),
        releases=bool(modifiers & {"release", "acq_rel"}),
        scope=SYSTEM if "volatile" in modifiers else scope,
    )


# What reading a word tells, by scope and by which cluster or launch that scope means.
Word = Mapping[tuple[int, int], Knowledge]


class Fence(NamedTuple):
    """A fence that lanes of a warp executed: when, what they knew, and that with what they did themselves."""

    lanes: int
    time: int
    known: Clock
    released: Clock
    scope: int


class GlobalOrder:
    """The clusters of a launch, or of several side by side, and the words that carry order between them."""

    def __init__(self) -> None:
        self.tables: list[SlotTable] = []
        self.words: dict[int, Word] = {}
        self.versions: dict[int, int] = {}  # of tensor maps that the launch changes, by address
        self.communicates = False  # whether some CTA has done what others may see without a race
        self._launches: list[int] = []
        self._first_agents: list[int] = []
        self._agents = 1
        self._names: list[str] = []

    def enrol(self, slots: SlotTable, name: str, launch: int) -> int:
        """The number of a new cluster."""
        self.tables.append(slots)
        self._launches.append(launch)
        self._first_agents.append(self._agents)
        self._names.append(name)
        self._agents += slots.size
        return len(self.tables) - 1

    def changed(self, tensor_map: int) -> None:
        """A tensor map in global memory has been written."""
        self.communicates = True
        self.versions[tensor_map] = self.versions.get(tensor_map, 0) + 1

    def reach(self, scope: int, cluster: int) -> tuple[int, int]:
        """A scope as a thread of a cluster means it."""
        return scope, (cluster, self._launches[cluster], 0)[scope]

    def apart(self, cluster: int, other: int) -> bool:
        """Whether two clusters belong to different launches, which only system scope brings together."""
        return self._launches[cluster] != self._launches[other]

    def agent(self, cluster: int, slot: int) -> int:
        """A number for a slot of a cluster, different for all of them and never 0."""
        return self._first_agents[cluster] + slot

    def who(self, agent: int) -> tuple[int, int]:
        """The cluster and the slot of an agent."""
        cluster = bisect_right(self._first_agents, agent) - 1
        return cluster, agent - self._first_agents[cluster]

    def describe(self, agent: int) -> str:
        cluster, slot = self.who(agent)
        return f"{self.tables[cluster].describe(slot)} ({self._names[cluster]})"

    def knowledge(self, cluster: int, clock: Clock) -> Knowledge:
        """What a clock of a cluster stands for, with what it knows of other clusters."""
        found: dict[int, Clock] = {}
        for slot, log in self.tables[cluster].heard.items():
            heard, passed_on = int(clock[READY, slot]), int(clock[ASYNC, slot])
            if heard:
                _merge(found, log[heard - 1])
            if passed_on:  # a proxy fence came after these news
                _merge(found, {c: rows[[READY, READY]] for c, rows in log[passed_on - 1].items()})
        _merge(found, {cluster: clock[[READY, ASYNC]]})
        return found

    def knows(
        self, access: Access, own: int, lane: int, agent: int, time: int, code: int, through_proxy: bool
    ) -> bool:
        """Whether a lane (several: SEVERAL) of cluster `own` is ordered after what an agent of another one did.

        code: the lane that did it. through_proxy: by way of the async proxy, which generic writes reach by a fence.
        """
        cluster, slot = self.who(agent)
        table = self.tables[cluster]
        generic = slot < table.grid_dependency and slot % SLOTS_A_WARP == GENERIC
        through_proxy = through_proxy and generic
        clock = access.order.known(ONE_LANE[lane] if 0 <= lane < LANES else None)

        def told(row: NDArray[np.int64]) -> bool:
            if time <= row[slot]:
                return True
            return generic and covers(table.releases[slot], time, int(row[slot + SOME]), code)

        for heard_slot, log in self.tables[own].heard.items():
            heard, passed_on = int(clock[READY, heard_slot]), int(clock[ASYNC, heard_slot])
            rows = log[heard - 1].get(cluster) if heard else None
            if rows is not None and told(rows[ASYNC if through_proxy else READY]):
                return True
            rows = log[passed_on - 1].get(cluster) if through_proxy and passed_on else None
            if rows is not None and told(rows[READY]):
                return True
        return False


def _merge(found: dict[int, Clock], more: Knowledge) -> None:
    for cluster, rows in more.items():
        have = found.get(cluster)
        found[cluster] = rows if have is None else np.maximum(have, rows)


class WordOrder:
    """What one warp tells and hears by words of global memory."""

    def __init__(self, warp: Warp, order: GlobalOrder) -> None:
        self._warp = warp
        self._order = order
        self._fences: list[Fence] = []
        self._unfenced: dict[
            tuple[int, bytes], tuple[Mask, Word]
        ] = {}  # relaxed reads that no fence followed
        self._heard: dict[tuple[int, bytes], Word] = {}
        self.observed: dict[
            int, int
        ] = {}  # by granule: the stamp of the strong write whose value a lane has read

    # --- hearing ------------------------------------------------------------------------------------------------

    def hear(self, addresses: NDArray[np.uint64], mask: Mask, how: Strength) -> None:
        """Lanes read words by strong accesses."""
        if not self._order.words:
            return
        for at, lanes in _by_word(addresses, mask):
            word = self._order.words.get(at)
            if word is None:
                continue
            key = (at, b"" if lanes is None else lanes.tobytes())
            if how.acquires:
                if self._heard.get(key) is not word:
                    self._heard[key] = word
                    self._learn(word, lanes, how.scope)
            else:
                self._unfenced[key] = lanes, word

    def observe(self, base: int, granules: NDArray[np.int64], stamps: NDArray[np.int64]) -> None:
        """A strong load reads what strong writes of these stamps left."""
        self.observed.update(zip((granules + base).tolist(), stamps.tolist(), strict=True))

    def fence(self, mask: Mask, scope: int) -> None:
        """A memory fence: acquires by earlier relaxed reads, and releases by later relaxed writes."""
        order = self._warp.order
        for key, (lanes, word) in list(self._unfenced.items()):
            here = mask if lanes is None else lanes if mask is None else lanes & mask
            if here is None or here.any():
                del self._unfenced[key]
                if self._heard.get(key) is not word:
                    self._heard[key] = word
                    self._learn(word, here, scope)
        time, known = order.epoch, order.known_by_any(mask).copy()
        released = self._warp.memory_fence(mask)
        lanes_now = bits_of(order.alive if mask is None else mask)
        self._fences = [f for f in self._fences if f.lanes & ~lanes_now]
        self._fences.append(Fence(lanes_now, time, known, released, scope))

    def _learn(self, word: Word, mask: Mask, scope: int) -> None:
        own = self._warp.cta.cluster.number
        others: dict[int, Clock] = {}
        for told_scope in (LOCAL, GPU, SYSTEM):
            told = word.get(self._order.reach(told_scope, own), {})
            if own in told:
                self._warp.acquire(told[own], mask)
            for cluster, rows in told.items():
                needed = min(told_scope, SYSTEM if self._order.apart(own, cluster) else GPU)
                if cluster != own and scope >= needed:
                    _merge(others, {cluster: rows})
        if others:
            slot = self._warp.cta.slot(self._warp.index, HEARD)
            log = self._order.tables[own].heard.setdefault(slot, [])
            news = dict(log[-1]) if log else {}
            _merge(news, others)
            log.append(news)
            self._warp.order.learn(slot, len(log), mask, READY)

    # --- telling ------------------------------------------------------------------------------------------------

    def tell(self, addresses: NDArray[np.uint64], mask: Mask, how: Strength, keeps: bool) -> None:
        """Lanes write words by strong accesses. keeps: these also read (atom, red), so what the words told stays."""
        words = self._order.words
        told, scope = self._released(mask, how)
        reach = self._order.reach(scope, self._warp.cta.cluster.number)
        if told is None and (keeps or not words):
            return
        for at in set(addresses.tolist()):
            old = words.get(at) if keeps else None
            if told is None:
                words.pop(at, None)
                continue
            new = dict(old or {})
            all_told = dict(new.get(reach, {}))
            _merge(all_told, told)
            new[reach] = all_told
            words[at] = new

    def overwrite(self, addresses: NDArray[np.uint64]) -> None:
        """Lanes write words by weak stores: these tell nothing any more."""
        words = self._order.words
        if words:
            for at in addresses.tolist():
                words.pop(at, None)

    def _released(self, mask: Mask, how: Strength) -> tuple[Knowledge | None, int]:
        cluster = self._warp.cta.cluster.number
        if how.releases:
            return self._order.knowledge(cluster, self._warp.released(mask)), how.scope
        order = self._warp.order
        lanes = bits_of(order.alive if mask is None else mask)
        for fence in reversed(self._fences):
            if not fence.lanes & lanes:
                continue
            clock = fence.released
            if (
                fence.lanes & ~lanes
            ):  # a fence releases what its own lane knows and did, not what the others did
                clock = fence.known.copy()
                insort(order.log, (fence.time, lanes))
                clock[READY, order.some] = max(fence.time, int(clock[READY, order.some]))
            return self._order.knowledge(cluster, clock), min(how.scope, fence.scope)
        return None, LOCAL


def _by_word(addresses: NDArray[np.uint64], mask: Mask) -> Iterable[tuple[int, Mask]]:
    """Each address, with the lanes that name it."""
    values = addresses.tolist()
    if values.count(values[0]) == len(values):
        yield values[0], mask
        return
    lanes = np.arange(LANES) if mask is None else np.flatnonzero(mask)
    for at in dict.fromkeys(values):
        chosen = np.zeros(LANES, dtype=bool)
        chosen[lanes[addresses == np.uint64(at)]] = True
        yield at, chosen
