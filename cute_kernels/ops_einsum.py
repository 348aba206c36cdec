"""The operations on batches: products, and sums of them, by the expressions that name their dimensions."""

from __future__ import annotations

from typing import Any

import torch

from .ops import tensor_key
from .recipes import along_k
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.einsum import EinsumRequest
from .runtime.errors import ArgumentError

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
        that is summed up and MN the operand's other one beside h, so int32 [H, MN, ceil(ceil(K/G)/4)].
    d: bfloat16 or float32; c: like d, and may be d.
    recipe: rows of A, rows of B and G: (1, 1, 128), FP8, which goes without saying, or (1, 1, 32), MXFP8.

    Last strides are 1; other strides, and addresses, multiples of 16 bytes, in any order: tensors may be slices of
    wider ones. The last dimension of a D with an h is a multiple of 16 bytes. D apart from A and B.
    """
    granularity = along_k(recipe)
    tensors: list[torch.Tensor] = []
    for name, given in (("a", a), ("b", b), ("d", d)):
        parts: Any = given if isinstance(given, tuple | list) and name != "d" else (given,)
        for part in parts:
            if not isinstance(part, torch.Tensor):
                raise ArgumentError(
                    f"{name} is a {type(part).__name__}; einsum takes tensors, and FP8 ones in a pair with their scale "
                    "factors"
                )
        tensors += parts
    key: Any = expression, granularity, *map(tensor_key, tensors), c is not None and tensor_key(c)
    key += (context.token(d.device),)
    request = _requests.get(key)
    if request is None:
        request = _requests.add(key, EinsumRequest(expression, a, b, d, c, granularity))
    request.run(d, c)


def fp8_einsum(
    expression: str,
    a: tuple[torch.Tensor, torch.Tensor],
    b: tuple[torch.Tensor, torch.Tensor],
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] = (1, 1, 128),
) -> None:
    """`einsum` under DeepGEMM's name, for FP8, or MXFP8 with recipe (1, 1, 32)."""
    for name, given in (("a", a), ("b", b)):
        if isinstance(given, torch.Tensor):
            raise ArgumentError(f"{name} is a tensor; fp8_einsum takes pairs of elements and scale factors")
    einsum(expression, a, b, d, c, recipe=recipe)
