"""What an explanation of surviving mutants is."""

from __future__ import annotations

from typing import NamedTuple

TRY_WAIT = "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64"
OTHERS = "another lane, or all others, do it in the place of one, with the same value"  # a reason of several kernels


class Equivalent(NamedTuple):
    """One explanation. It fits exactly the mutants it was written for, so that it hides no other.

    kernels: whose mutants. what: the beginning of their name. place: file and function. nth of `of`: which ones of
    that name and place.
    """

    kernels: tuple[str, ...]
    what: str
    place: str
    nth: tuple[int, ...]
    of: int
    why: str
