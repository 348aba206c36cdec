"""The operations on batches: products, and sums of them, by the expressions that name their dimensions."""

from __future__ import annotations

from typing import Any

import torch

from .recipes import BLOCK_ROWS, of_operands, packed
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.einsum import EXPRESSIONS, EinsumRequest, Order
from .runtime.errors import ArgumentError
from .runtime.plan import Ahead
from .runtime.tensors import require_tensor, tensor_key

Given = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""BF16, or FP8 elements and their scale factors."""

_requests: BoundedCache[EinsumRequest] = BoundedCache(1024)


def einsum(
    expression: str,
    a: Given,
    b: Given,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    recipe: tuple[int, int, int] | None = None,
) -> None:
    """D = the sum of products of A and B that an expression names, in BF16, FP8 or MXFP8 with FP32 accumulation.

    "bhr,hdr->bhd", "bhd,hdr->bhr" and "bhd,bhr->hdr": a product for each h. With scale factors, the first takes C,
        and the third C and a float32 D; others take no C.
    "bmk,bnk->mn": D = sum over b and k (+ C), of BF16 operands. A float32 D for every few batches is allocated, and
        these are summed up: in the same order on every device with as many multiprocessors.

    a, b: bfloat16, or both (elements, scale factors). Dimensions are in the expression's order; elements are
        float8_e4m3fn. Scale factors are UE8M0, one for G elements that are summed up, packed for each h:
        scale_factors.pack_for_kernel(scales, mn, k, gran_k=G) of scales [H, MN, ceil(K/G)], K being the dimension
        that is summed up and MN the operand's other one beside h, so int32 [H, MN, ceil(ceil(K/G)/4)]. Or float32, one
        for each block, in the expression's order as elements are; each call packs them as `gemm_nt` does.
    d: bfloat16 or float32; c: like d, and may be d.
    recipe: rows of A, rows of B and G: (1, 1, 128), FP8, which goes without saying, or (1, 1, 32), MXFP8. Rows of
        float32 scale factors may be more, and go without saying as (1, 128, 128), in the third expression (1, 1, 128).

    Last strides are 1; other strides, and addresses, multiples of 16 bytes, in any order: tensors may be slices of
    wider ones. The last dimension of a D with an h is a multiple of 16 bytes. D apart from A and B.
    """
    tensors: list[torch.Tensor] = []
    for name, given in (("a", a), ("b", b), ("d", d), *(() if c is None else (("c", c),))):
        parts: Any = given if isinstance(given, tuple | list) and name in "ab" else (given,)
        for part in parts:
            if not isinstance(part, torch.Tensor):
                raise ArgumentError(
                    f"{name} is a {type(part).__name__}; einsum takes tensors, and FP8 ones in a pair with their scale "
                    "factors"
                )
            require_tensor(name, part)
    a, b, granularity, packing = _packed(expression, a, b, recipe)
    for operand in (a, b):
        tensors += [operand] if isinstance(operand, torch.Tensor) else operand
    tensors.append(d)
    key: Any = expression, granularity, *map(tensor_key, tensors), c is not None and tensor_key(c)
    key += (context.token(d.device),)
    request = _requests.get(key)
    if request is None:
        request = _requests.add(key, EinsumRequest(expression, a, b, d, c, granularity))
    request.run(d, c, packing)


def _packed(
    expression: str, a: Given, b: Given, recipe: Any
) -> tuple[Given, Given, int | None, Ahead | None]:
    """Return operands with packed scale factors, float32 ones being in the expression's order as elements are."""
    pair, e = of_operands(recipe), EXPRESSIONS.get(expression)
    if e is None:
        return a, b, None, None  # whoever takes it says what is wrong
    # Where the sum is over what comes first, neither operand has blocks.
    left, right, granularities, packing = packed(
        _permuted(a, e.a), _permuted(b, e.b), pair, BLOCK_ROWS if e.a_major == "k" else 1
    )
    a, b = (now if now is before else (before[0], now[1]) for before, now in ((a, left), (b, right)))
    return a, b, granularities[0], packing


def _permuted(given: Any, order: Order) -> Any:
    """Return views of elements and float32 scale factors as [batch, MN, K]; anything else as it is."""
    if isinstance(given, torch.Tensor) or len(given) != 2 or given[1].dtype != torch.float32:
        return given
    return tuple(part.permute(order) if part.dim() == 3 else part for part in given)


def fp8_einsum(
    expression: str,
    a: tuple[torch.Tensor, torch.Tensor],
    b: tuple[torch.Tensor, torch.Tensor],
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] | None = None,
) -> None:
    """`einsum` under DeepGEMM's name, for FP8, or MXFP8 with recipe (1, 1, 32)."""
    for name, given in (("a", a), ("b", b)):
        if isinstance(given, torch.Tensor):
            raise ArgumentError(f"{name} is a tensor; fp8_einsum takes pairs of elements and scale factors")
    einsum(expression, a, b, d, c, recipe=recipe)
