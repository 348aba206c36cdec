"""Small PTX kernels, one a case, for what is neither arithmetic nor a matrix instruction."""

from __future__ import annotations

from collections.abc import Iterator

from . import atomics, barriers, changed_maps, copies, idioms, memory, warps
from .kernel import Case

__all__ = ["Case", "cases"]


def cases() -> Iterator[Case]:
    """All cases, in a fixed order; names are unique."""
    for module in (warps, memory, barriers, copies, atomics, idioms, changed_maps):
        yield from module.cases()
