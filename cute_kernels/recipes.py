"""Recipes: how many rows, and how many elements of K, share a scale factor, as calls say it in DeepGEMM's way."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from .runtime.errors import ArgumentError


def numbers(name: str, recipe: Any, of: str) -> tuple[int, ...] | None:
    """Return a recipe that is given as so many numbers, None where none is. of: what they count, by commas."""
    if recipe is None:
        return None
    given = tuple(recipe) if isinstance(recipe, tuple | list) else ()
    if len(given) != len(of.split(", ")) or not all(isinstance(number, Integral) for number in given):
        raise ArgumentError(f"{name} is {recipe!r}; it must be ({of}), or left out")
    return given


def of_operands(recipe: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the recipe (rows, elements of K) of A and of B that (rows of A, rows of B, elements of K) is."""
    given = numbers("recipe", recipe, "rows of A, rows of B, elements of K")
    return None if given is None else ((given[0], given[2]), (given[1], given[2]))


def along_k(recipe: Any) -> int | None:
    """Return the elements of K that share a scale factor. Refuse other rows than (1, 1): packed ones are one a row."""
    given = numbers("recipe", recipe, "rows of A, rows of B, elements of K")
    if given is not None and given[:2] != (1, 1):
        raise ArgumentError(
            f"recipe is {given}; packed scale factors are one a row, so (1, 1, granularity): "
            "cute_kernels.scale_factors.pack_for_kernel() repeats block scales"
        )
    return None if given is None else given[2]
