"""What a shadow state knows of the pages of a memory: when each slot accessed any granule of a page last.

Pages that were accessed together share one dictionary, which therefore never changes: an access of many pages is mostly
one look and one new dictionary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Page = dict[int, int]  # by slot: the last time


def note(pages: list[Page], first: int, last: int, slot: int, time: int) -> None:
    """Notes an access of pages [first, last)."""
    seen: Page | None = None
    new: Page = {}
    for at in range(first, last):
        page = pages[at]
        if page is not seen and page != seen:
            new = {**page, slot: time}
        seen = page
        pages[at] = new


def late(pages: list[Page], first: int, last: int, known: NDArray[np.int64]) -> bool:
    """Whether pages [first, last) tell of an access that `known` does not cover."""
    seen: Page | None = None
    known_until = known.item
    for page in pages[first:last]:
        if page is not seen:
            for slot, time in page.items():
                if time > known_until(slot):
                    return True
            seen = page
    return False
