"""How many K blocks each CTA gets of a product with fewer tiles than multiprocessors (device/splitk.py).

The model, in cycles of one multiprocessor, for shares of `share` of the K blocks of all tiles:

    launch = start + share * K block + leave + collects * collect + epilogue

A CTA that leaves its sums stores a slot and its flag; a tile's owner waits for as many CTAs as have K blocks behind its
own, `collects`, and loads the slot of each in turn. Slots are of FP32 sums, and stay in L2.
"""

from __future__ import annotations

from typing import NamedTuple


class Division(NamedTuple):
    """What CTAs do: `share` K blocks each. collects: slots that an owner loads at most.

    cycles: from the first K block until the sums of the last tile are complete.
    """

    ctas: int
    share: int
    collects: int
    cycles: float


def best(
    tiles: int, k_blocks: int, num_sms: int, block: float, leave: float, collect: float
) -> Division | None:
    """Return the division that costs least, with a CTA a multiprocessor at most; None where there is nothing to share.

    block, leave, collect: cycles of a K block, of leaving sums until others see them, of collecting those of one CTA.
    The shortest share spreads the K blocks widest; longer ones have less to collect.
    """
    divisions = []
    for share in range(-(-tiles * k_blocks // num_sms), k_blocks):
        # An owner has all K blocks up to the end of its share: as few as one, unless tiles are of whole shares.
        own = share if k_blocks % share == 0 else 1
        collects = -(-(k_blocks - own) // share)
        cycles = share * block + leave + collects * collect
        divisions.append(Division(-(-tiles * k_blocks // share), share, collects, cycles))
    return min(divisions, key=lambda division: division.cycles, default=None)


def depth_of_sum(m: int, n: int, batches: int, num_sms: int) -> int:
    """Return how many of the products [m, n] of a sum over batches a CTA adds up, so that all have something to do."""
    tiles = -(-m // 128) * -(-n // 128)
    return -(-batches // max(1, min(batches, num_sms // max(tiles, 1))))
