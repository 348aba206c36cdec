"""The shadow state, with its pages and rectangles, finds what one look at every granule finds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cute_kernels.emulator import shadow as shadows
from cute_kernels.emulator.shadow import Cells, Conflict, Region, Shadow, Where

SLOTS = 6
ROW = 128  # granules of a row of the memory that has rows
GRANULES = 24 * ROW

Granules = NDArray[np.int64]


class EveryGranule:
    """The last write of each granule, and each slot's last read of it."""

    def __init__(self) -> None:
        self.writes = np.zeros((SLOTS, GRANULES), np.int64)
        self.reads = np.zeros((SLOTS, GRANULES), np.int64)

    def late(self, at: Granules, known: Granules, reads: bool) -> set[int]:
        """The granules whose last write, or reads, `known` does not cover."""
        times = self.reads if reads else self.writes
        return set(at[(times[:, at] > known[:, None]).any(axis=0)].tolist())

    def write(self, at: Granules, slot: int, time: int) -> None:
        self.writes[:, at] = 0
        self.writes[slot, at] = time


def chosen(random: np.random.Generator, rows: bool) -> tuple[Where, Granules]:
    """Some granules, as an access gives them and one by one."""
    kind = random.integers(3)
    if kind == 0:
        at = np.unique(random.integers(0, GRANULES, random.integers(1, 40)))
        return at, at
    if kind == 1 and rows:
        (top, bottom), (left, right) = (np.sort(random.choice(n + 1, 2, replace=False)) for n in (24, ROW))
        cells = (np.arange(top, bottom)[:, None] * ROW + np.arange(left, right)).ravel()
        return Cells(slice(int(top), int(bottom)), slice(int(left), int(right))), cells
    first, last = np.sort(random.choice(GRANULES + 1, 2, replace=False)).tolist()
    if rows:
        return np.arange(first, last), np.arange(first, last)
    return slice(first, last), np.arange(first, last)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_accesses(seed: int, rows: bool) -> None:
    random = np.random.default_rng(seed)
    shadow, model = Shadow(GRANULES, row=ROW if rows else 0), EveryGranule()
    times, written = np.zeros(SLOTS, np.int64), np.zeros(GRANULES, bool)
    found = 0
    for _ in range(300):
        slot = int(random.integers(SLOTS))
        times[slot] += random.integers(2)
        time = max(1, int(times[slot]))
        known = np.maximum(times - random.integers(0, 3, SLOTS) * (random.random(SLOTS) < 0.2), 0)
        where, at = chosen(random, rows)
        conflict: Conflict | None = None
        late: set[int] = set()
        if random.random() < 0.1:
            shadow.forget(where)
            written[at] = False
        elif random.random() < 0.5:
            conflict = shadow.read(where, known, slot, time)
            late = model.late(at, known, reads=False)
            model.reads[slot, at] = time
            bad = np.flatnonzero(~written[at])
            assert shadow.first_invalid(where) == (int(at[bad[0]]) if len(bad) else None)
        else:
            conflict = shadow.write(where, known, slot, time, known)
            late = model.late(at, known, reads=False) or model.late(at, known, reads=True)
            model.write(at, slot, time)
            written[at] = True
        assert (conflict is None) == (not late)
        if conflict is not None:
            found += 1
            assert conflict.granule in late
    assert found > 20


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_put_aside_counts_as_if_noted_at_once(
    seed: int, rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accesses of a few regions over and over, by lanes or not, of which few need a look at granules."""
    random = np.random.default_rng(seed)
    late, at_once = (Shadow(GRANULES, row=ROW if rows else 0) for _ in range(2))
    regions: list[tuple[Region, int]] = []
    for _ in range(12):
        where, at = chosen(random, rows)
        regions.append((late.region(where), len(at)))
    times = np.zeros(SLOTS, np.int64)
    found = 0
    for _ in range(2000):
        slot = int(random.integers(SLOTS))
        times[slot] += random.integers(2)
        time = max(1, int(times[slot]))
        known = np.maximum(times - random.integers(0, 3, SLOTS) * (random.random(SLOTS) < 0.01), 0)
        known[slot] -= slot < 2  # lanes of a warp are not ordered among themselves
        region, size = regions[random.integers(len(regions))]
        lanes = random.integers(0, 3, size).astype(np.int8) if slot < 3 and random.random() < 0.9 else None
        reads = bool(random.random() < 0.6)
        conflicts = []
        for shadow, most in ((late, 64), (at_once, 0)):
            monkeypatch.setattr(shadows, "_MOST_ASIDE", most)
            if reads:
                conflicts.append(shadow.read(region, known, slot, time, lanes))
            else:
                conflicts.append(shadow.write(region, known, slot, time, known, lanes))
        assert conflicts[0] == conflicts[1]
        found += conflicts[0] is not None
    assert 20 < found < 1800
