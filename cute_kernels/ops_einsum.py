"""The operations on batches: products, and sums of them, by the expressions that name their dimensions."""

from __future__ import annotations

from typing import Any

import torch

from .ops import tensor_key
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.einsum import EinsumRequest
from .runtime.errors import ArgumentError

Given = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""BF16, or FP8 elements and their scale factors."""

_requests: BoundedCache[EinsumRequest] = BoundedCache(1024)


def einsum(expression: str, a: Given, b: Given, d: torch.Tensor, c: torch.Tensor | None = None) -> None:
    """D = the sum of products of A and B that an expression names, in BF16 or FP8 with FP32 accumulation.

    "bhr,hdr->bhd", "bhd,hdr->bhr" and "bhd,bhr->hdr": a product for each h. The third of FP8 operands takes C and a
        float32 D; the others take no C.
    "bmk,bnk->mn": D = sum over b and k (+ C), of BF16 operands. A float32 D for every few batches is allocated, and
        these are summed up: in the same order on every device with as many multiprocessors.

    a, b: bfloat16, or both (elements, scale factors) in FP8. Dimensions are in the expression's order; elements are
        float8_e4m3fn. Scale factors are UE8M0, one for 128 elements that are summed up, packed for each h:
        scale_factors.pack_for_kernel(scales, mn, k, gran_k=128) of scales [H, MN, ceil(K/128)], K being the dimension
        that is summed up and MN the operand's other one beside h, so int32 [H, MN, ceil(ceil(K/128)/4)].
    d: bfloat16 or float32; c: like d, and may be d.

    Last strides are 1; other strides, and addresses, multiples of 16 bytes, in any order: tensors may be slices of
    wider ones. The last dimension of a D with an h is a multiple of 16 bytes. D apart from A and B.
    """
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
    key = (expression, *map(tensor_key, tensors), c is not None and tensor_key(c), context.token(d.device))
    request = _requests.get(key)
    if request is None:
        request = _requests.add(key, EinsumRequest(expression, a, b, d, c))
    request.run(d, c)


def fp8_einsum(
    expression: str,
    a: tuple[torch.Tensor, torch.Tensor],
    b: tuple[torch.Tensor, torch.Tensor],
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] = (1, 1, 128),
) -> None:
    """`einsum` under DeepGEMM's name, for FP8: a scale factor for each row and 128 elements, as `recipe` may say."""
    if tuple(recipe) != (1, 1, 128):
        raise ArgumentError(
            f"recipe is {recipe}; packed scale factors are one a row and 128 elements, so (1, 1, 128): "
            "cute_kernels.scale_factors.pack_for_kernel() repeats block scales"
        )
    for name, given in (("a", a), ("b", b)):
        if isinstance(given, torch.Tensor):
            raise ArgumentError(f"{name} is a tensor; fp8_einsum takes pairs of elements and scale factors")
    einsum(expression, a, b, d, c)
