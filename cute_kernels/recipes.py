"""Recipes: how many rows, and how many elements of K, share a scale factor, as calls say it in DeepGEMM's way.

Kernels take packed scale factors, one a row. Those that come in float32, one for a block of rows as the recipe says,
are packed here: rounded up to powers of two, repeated for each row of their block, and packed. That is a dozen small
operations of torch on the current stream, in memory of torch's; none waits for the device, so graphs capture them.

A call that is refused, or that has nothing to compute, runs none of them. So memory is allocated here, since its
address is a part of the call that is checked; and what fills it is returned, for whoever launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch

from .runtime.errors import ArgumentError
from .runtime.plan import Ahead
from .runtime.tensors import describe, require_one_device, require_tensor
from .scale_factors import (
    empty_k_grouped,
    empty_packed,
    encode_scales,
    pack_for_kernel,
    pack_k_grouped,
)
from .scale_layout import ceil_div, packed_group_starts

Recipe = tuple[int, ...]
"""Rows, and elements of K, that share a scale factor."""

BLOCK_ROWS = 128  # of B, where scale factors are float32 and there is no recipe
# Formats whose scale factors may be float32, by the dtype of elements: how many an item holds, and how many share a
# scale factor where there is no recipe.
_FLOAT_SCALED: dict[torch.dtype, tuple[int, int]] = {
    torch.float8_e4m3fn: (1, 128),
    torch.float4_e2m1fn_x2: (2, 32),
    torch.uint8: (2, 32),
    torch.int8: (2, 32),
}


def numbers(name: str, recipe: Any, of: str) -> tuple[int, ...] | None:
    """Return a recipe that is given as so many numbers, None where none is. of: what they count, by commas."""
    if recipe is None:
        return None
    given = tuple(recipe) if isinstance(recipe, tuple | list) else ()
    if len(given) != len(of.split(", ")) or not all(isinstance(number, Integral) for number in given):
        raise ArgumentError(f"{name} is {recipe!r}; it must be ({of}), or left out")
    return given


def of_operands(recipe: Any) -> tuple[Recipe, Recipe] | None:
    """Return the recipe (rows, elements of K) of A and of B that (rows of A, rows of B, elements of K) is."""
    given = numbers("recipe", recipe, "rows of A, rows of B, elements of K")
    return None if given is None else ((given[0], given[2]), (given[1], given[2]))


def along_k(recipe: Any) -> int | None:
    """Return the elements of K that share a scale factor. Refuse other rows than (1, 1): groups have no blocks."""
    given = numbers("recipe", recipe, "rows of A, rows of B, elements of K")
    if given is not None and (given[:2] != (1, 1) or given[2] < 1):
        raise ArgumentError(
            f"recipe is {given}; scale factors of groups along K are one a row, so (1, 1, granularity)"
        )
    return None if given is None else given[2]


def packed(
    a: Any, b: Any, pair: tuple[Recipe, Recipe] | None, block_rows: int = BLOCK_ROWS
) -> tuple[Any, Any, tuple[int | None, int | None], Ahead | None]:
    """Return operands with packed scale factors, how many elements of K share one of A and of B (None: any), and what
    packs those that are in float32, before which nothing is written (None: none are).

    a, b: pairs of elements [..., MN, K] and scale factors, of which float32 ones [..., ceil(MN/rows),
        ceil(K/elements)] are packed; anything else is returned as it is, for its request to judge.
    pair: the recipe of each. By default, float32 scale factors are one for 128 elements of FP8, or 32 of FP4, of a row,
        or in a B of FP8 of `block_rows` rows.

    Raises ArgumentError for float32 scale factors of another shape, and for blocks of rows where they are packed
    already.
    """
    recipes: list[Recipe | None] = []
    unpacked = _in_float32(a), _in_float32(b)
    for name, given, in_float32, stated, rows in zip(
        "ab", (a, b), unpacked, pair or (None, None), (1, block_rows), strict=True
    ):
        recipe = stated
        if in_float32:
            fp8 = given[0].dtype == torch.float8_e4m3fn
            recipe = stated or (rows if fp8 else 1, _FLOAT_SCALED[given[0].dtype][1])
            _require_shape(name, given, recipe)
        elif stated is not None and stated[0] != 1:
            assert pair is not None
            raise ArgumentError(
                f"the recipe is {pair[0]} for a and {pair[1]} for b, but {name} has no scale factors in float32; "
                "packed scale factors are one a row, so (1, granularity): "
                "cute_kernels.scale_factors.pack_for_kernel() repeats block scales"
            )
        recipes.append(recipe)
    of_a, of_b = recipes
    granularities = of_a[1] if of_a else None, of_b[1] if of_b else None
    if not any(unpacked):
        return a, b, granularities, None
    (a, of_left), (b, of_right) = (
        _allocated(given, recipe) if in_float32 else (given, None)
        for given, recipe, in_float32 in zip((a, b), recipes, unpacked, strict=True)
    )
    return a, b, granularities, both(of_left, of_right)


def packed_k_grouped(
    given: Any,
    shape: tuple[int | None, int] | None,
    ks: Sequence[Any] | None,
    ks_tensor: Any,
    granularity: int | None,
    name: str,
) -> tuple[Any, Ahead | None]:
    """Return an operand of groups along K with packed scale factors, where they are float32 [ceil(K/granularity), MN],
    and what packs them, as `packed` does.

    shape: its (K, MN), K None where MN = 0 leaves it open; None if it has none; then, as all else that has no float32
        scale factors, it is returned as it is. ks, ks_tensor: lengths of the groups, for the host, or None, and on the
        device, which says where the words of each begin. granularity: 128 by default.
    """
    if shape is None or not _in_float32(given):
        return given, None
    granularity = granularity or _FLOAT_SCALED[torch.float8_e4m3fn][1]
    elements, scales = given
    require_tensor(f"{name}'s scale factors", scales)
    k, mn = shape
    require_one_device({name: elements, f"{name}'s scale factors": scales, "ks_tensor": ks_tensor})
    if ks_tensor.dtype != torch.int32 or ks_tensor.dim() != 1:
        raise ArgumentError(f"ks_tensor is {describe(ks_tensor)}; it must be int32 [groups]")
    rows, groups = ceil_div(k or 0, granularity), ks_tensor.shape[0]
    if k is None and scales.dim() == 2:
        rows = scales.shape[0]
    if tuple(scales.shape) != (rows, mn):
        raise ArgumentError(
            f"{name}'s scale factors are {describe(scales)}; with one for {granularity} elements of K they are float32 "
            f"[{rows}, {mn}], or packed: scale_factors.pack_k_grouped()"
        )
    words = (rows + 3 * groups) // 4  # what the groups may need at most
    if ks is not None and all(isinstance(length, int) and length >= 0 for length in ks):
        words = packed_group_starts(list(ks), granularity)[-1]
    out = empty_k_grouped(words, mn, scales.device)

    def pack() -> None:
        pack_k_grouped(encode_scales(scales, check="none"), ks_tensor, granularity, words=words, out=out)

    return (elements, out), pack


def both(left: Ahead | None, right: Ahead | None) -> Ahead | None:
    """Return what packs for two operands, either of which may need nothing."""
    if left is None or right is None:
        return left or right
    return lambda: (left(), right())


def _in_float32(given: Any) -> bool:
    """Whether an operand is elements of two dimensions at least with scale factors in float32."""
    pair = isinstance(given, tuple | list) and len(given) == 2
    if not pair or not all(isinstance(part, torch.Tensor) for part in given):
        return False
    return given[0].dtype in _FLOAT_SCALED and given[1].dtype == torch.float32


def _extents(elements: torch.Tensor) -> tuple[int, int]:
    """Return MN and K."""
    return elements.shape[-2], elements.shape[-1] * _FLOAT_SCALED[elements.dtype][0]


def _require_shape(name: str, given: Any, recipe: Recipe) -> None:
    """Refuse float32 scale factors that are not one for each block of a recipe."""
    elements, scales = given
    require_tensor(f"{name}'s scale factors", scales)
    if elements.dim() < 2 or min(recipe) < 1:
        raise ArgumentError(
            f"{name} is {describe(elements)} with the recipe {recipe}; elements with scale factors in float32 have two "
            "dimensions or three, and recipes (rows, elements of K) are positive"
        )
    mn, k = _extents(elements)
    wanted = [*elements.shape[:-2], ceil_div(mn, recipe[0]), ceil_div(k, recipe[1])]
    if list(scales.shape) != wanted:
        raise ArgumentError(
            f"{name}'s scale factors are {describe(scales)}; of {mn} rows and K = {k} with the recipe {recipe}, (rows, "
            f"elements of K) to a scale factor, they are float32 {wanted}. Say the recipe that they have"
        )


def _allocated(given: Any, recipe: Recipe | None) -> tuple[Any, Ahead]:
    """Return an operand whose scale factors are to be packed, and what packs them."""
    assert recipe is not None
    elements, scales = given
    mn, k = _extents(elements)
    rows, granularity = recipe
    out = empty_packed((*scales.shape[:-2], mn, scales.shape[-1]), scales.device)
    pack = partial(pack_for_kernel, scales, mn, k, gran_mn=rows, gran_k=granularity, check="none", out=out)
    return (elements, out), pack
