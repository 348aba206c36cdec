"""Columns of a D that leaves a gap in every head: where the columns of the product go.

The product has heads of `width` columns, the last `right` of which D holds `mid` columns further on. What lies between
a head's right part and the next head's left part is nothing, so both together move as one: column c of the product
belongs to column c + mid * ((c + right) // width) of D.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
from cutlass import Int32, Uint32

from cute_kernels.device.tiles import divide, reciprocal


class Heads(NamedTuple):
    """Columns of a head of the product, and how many D holds behind and as its gap; all multiples of a store's.

    inverse: tiles.reciprocal of the width, for `shift`; see `prepared`.
    """

    width: Any
    right: Any
    mid: Any
    inverse: Any = None


def prepared(heads: Heads | None) -> Heads | None:
    """Return heads with what all calls of `shift` need, by whoever makes them."""
    return None if heads is None else heads._replace(inverse=reciprocal(heads.width))


def shift(heads: Heads | None, column: Any) -> tuple[Any, Any]:
    """Return how much further on D has a column of the product, and how far it is from where that last grew.

    Nothing for D without heads.
    """
    if heads is None:
        return 0, 0
    place = Uint32(column) + Uint32(heads.right)
    head, rest = divide(place, Uint32(heads.width), heads.inverse)
    return Int32(head) * heads.mid, Int32(rest)


def advance(heads: Heads | None, shifted: tuple[Any, Any], columns: int) -> tuple[Any, Any]:
    """Return `shift` of a column that is `columns` behind, at most `width`: without another division."""
    if heads is None:
        return shifted
    by, place = shifted
    wraps = Int32(cutlass.Boolean(place + columns >= heads.width))
    return by + wraps * heads.mid, place + columns - wraps * heads.width
