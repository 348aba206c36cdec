"""The tables of docs/mutation.md, from verdicts."""

from __future__ import annotations

import pytest

from tests.mutation import tables
from tests.mutation.mutants import Mutant

WAIT = ("drop wgmma.wait_group.sync.aligned", "w4a16_wgmma.py:multiply")
STORE = ("drop st.global.v4.b32", "w4a16_sums.py:store")


def judged(of: int, survivors: dict[tuple[str, str], list[int]]) -> list[tuple[Mutant, str]]:
    """Verdicts over `of` mutants of each name and place, of which some survive."""
    return [
        (Mutant(what, 1, "x.py:1", place, nth, of, 0, 0, ""), "" if nth in nths else "race")
        for (what, place), nths in survivors.items()
        for nth in range(1, of + 1)
    ]


def test_what_is_explained_does_not_count() -> None:
    explained = judged(8, {WAIT: [1, 2, 3, 6, 7]})
    *_, row = tables.scores({"w4a16_wgmma": [*explained, *judged(4, {STORE: [2]})]})
    assert row.endswith("| 12 | 5 | 6 of 7, 85.71 % |")


def test_kernels_with_the_same_survivors_share_a_row() -> None:
    of_each = judged(8, {WAIT: [1, 2, 3, 6, 7, 8]})
    head, line, *rows = tables.survivors({"w4a16_wgmma": of_each, "w4a16_wgmma_wide": of_each})
    assert head.count("|") == line.count("|") == 5
    explained, unexplained = rows
    assert explained.startswith("| w4a16_wgmma, w4a16_wgmma_wide | drop wgmma.wait_group | ")
    assert "multiply 1-3, 6, 7 of 8 | the last wait" in explained
    assert "8 of 8 | **not explained**" in unexplained


@pytest.mark.parametrize(
    ("nths", "of", "said"), [([1], 1, ""), ([2, 1], 2, "all 2"), ([1, 2], 3, "1, 2 of 3"), ([4], 9, "4 of 9")]
)
def test_positions(nths: list[int], of: int, said: str) -> None:
    assert tables._positions(nths, of) == said
