"""The public operations: torch tensors in, torch tensors out.

CUDA tensors run on their GPU, on torch's current stream; CPU tensors run on the emulator of the architecture
that `cute_kernels.emulate` or the environment's CUTE_KERNELS_ARCH names. Names and argument order follow
DeepGEMM where it has the operation.

Every operation refuses what it does not support before anything is written or launched: ArgumentError (a
ValueError) for its arguments, KernelNotFoundError for an architecture without the kernel, ManifestError for a
cubin folder that is missing or damaged. None reads a tensor's values on the host or waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch

from . import recipes
from .nvfp4_weight import PackedNvfp4Weight
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.dequantize import DequantizeRequest
from .runtime.errors import ArgumentError
from .runtime.gemm import GemmRequest
from .runtime.gemm_operands import Given, Scaled
from .runtime.grouping import Grouping
from .runtime.repack import RepackRequest
from .runtime.tensors import output_key, require_tensor, tensor_key
from .runtime.w4a16 import W4a16Request

_gemm_requests: BoundedCache[GemmRequest] = BoundedCache(1024)
_dequantize_requests: BoundedCache[DequantizeRequest] = BoundedCache(1024)
_w4a16_requests: BoundedCache[W4a16Request] = BoundedCache(1024)
_repack_requests: BoundedCache[RepackRequest] = BoundedCache(1024)


def gemm_nt(
    a: Given,
    b: Given,
    d: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    recipe: tuple[int, int, int] | None = None,
    scheduling: str = "static",
    busy_sms: int = 0,
) -> torch.Tensor:
    """D = A @ B^T (+ C) with FP32 accumulation; returns D.

    a: A [M, K] in BF16, or its (elements, scale factors); b: B [N, K] likewise. Both in one format, or one in
        MXFP4 and the other in FP8 or MXFP8: then K is a multiple of 128, and rows of the MXFP4 are 32-byte
        aligned. K-major (last stride 1),
        or in BF16, FP8 and MXFP8 also MN-major (first stride 1); the other stride is a multiple of 16 bytes.

        BF16: bfloat16 [MN, K], a tensor by itself.

        MXFP4: float4_e2m1fn_x2, uint8 or int8 [MN, K/2], two a byte (the low nibble is the even k), K a
            multiple of 32; UE8M0 scale factors, one for 32 elements of K.
        NVFP4: elements likewise, K a multiple of 16; UE4M3 scale factors, one for 16; a third tensor, the
            global scale: one float32, a multiplier, which the kernel reads.
        FP8, MXFP8: float8_e4m3fn [MN, K]; UE8M0 scale factors, one for 128 elements of K, or for 32 with
            recipe (1, 1, 32).

        Scale factors are packed four in an int32: int32 [MN, ceil(ceil(K/granularity)/4)] with strides
        (1, MN rounded up to 4), as `cute_kernels.scale_factors` packs them. Of FP8, MXFP8 and MXFP4 they may also be
        float32 [ceil(MN/rows), ceil(K/granularity)]: then each call packs them, rounded up to powers of two, which
        elements should have been quantized with. Negative ones, infinity and NaN become NaN.
    d: bfloat16 or float32 [M, N], last stride 1, rows 16-byte aligned; must not share memory with A, B or
        their scale factors. Allocated if not given; then its row stride is N rounded up to 16 bytes. A given
        D whose N is not whole 16 bytes costs a temporary and a copy, because TMA writes whole 16 bytes.
    c: of D's dtype and shape, its row stride free; may be d itself. Another one of float32 is copied into d first.
    out_dtype: of D if it is not given; else c's dtype, else bfloat16.
    recipe: rows of A, rows of B and elements of K that share a scale factor. Without it those are as the format has
        them; where they are float32, the B of FP8 has blocks of 128 rows: (1, 128, 128).
    scheduling: which CTA computes what: "static", decided at the launch; or "clc", for K-major MXFP4 or BF16 without C:
        CTAs that are free take the next tile (cluster launch control), which helps beside kernels that hold some of the
        multiprocessors; or "auto", what is estimated to take less time, with "static" where there is no "clc".
    busy_sms: how many multiprocessors other kernels hold, for the choice of a kernel only. D has the same bits in
        every order of tiles, but other divisions of K, which a choice may change, round in another order.

    M = 0 or N = 0 does nothing; K = 0 gives C, or zeros. Equal calls give equal bits, also where the K of a tile is
    shared among CTAs, as it is where there are few tiles and K is large. Those calls share a workspace on each stream,
    so a graph that has captured one may run on another stream only while nothing else runs on that of the capture.
    """
    pair = recipes.of_operands(recipe)
    return _gemm_nt(a, b, d, c, _result_dtype(d, c, out_dtype), pair, scheduling, busy_sms)


def _gemm_nt(
    a: Given,
    b: Given,
    d: torch.Tensor | None,
    c: torch.Tensor | None,
    dtype: torch.dtype,
    pair: tuple[tuple[int, ...], tuple[int, ...]] | None,
    scheduling: str = "static",
    busy_sms: int = 0,
) -> torch.Tensor:
    """`gemm_nt` with a recipe for each operand: rows and elements of K that share a scale factor."""
    a, b, granularities, packing = recipes.packed(a, b, pair)
    key: Any
    try:
        key = (
            *map(tensor_key, (a,) if isinstance(a, torch.Tensor) else a),
            *map(tensor_key, (b,) if isinstance(b, torch.Tensor) else b),
            granularities,
            c is not None and tensor_key(c),
            d is not None and output_key(d),
            dtype,
            (scheduling, busy_sms),
            context.token((a if isinstance(a, torch.Tensor) else a[0]).device),
        )
    except (TypeError, AttributeError, IndexError):
        wrong = GemmRequest(a, b, c, d, dtype, granularities, scheduling, busy_sms)  # which says what it is
        return wrong.run(d, c, packing)
    request = _gemm_requests.get(key)
    if request is None:
        request = _gemm_requests.add(key, GemmRequest(a, b, c, d, dtype, granularities, scheduling, busy_sms))
    return request.run(d, c, packing)


def fp8_fp4_gemm_nt(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
) -> None:
    """`gemm_nt` under DeepGEMM's name and with its arguments, for operands with scale factors, packed or in float32.

    recipe: rows of A, rows of B and elements of K that share a scale factor; or recipe_a and recipe_b, (rows,
        elements) of each. Without them, MXFP4 has 32 elements, NVFP4 16 and FP8 128, and float32 scale factors of a B
        of FP8 are of blocks of 128 rows: (1, 128, 128).
    """
    pair = recipes.of_operands(recipe)
    of_a, of_b = (
        recipes.numbers(f"recipe_{x}", of, "rows, elements of K")
        for x, of in (("a", recipe_a), ("b", recipe_b))
    )
    if of_a is not None or of_b is not None:
        if pair is not None or of_a is None or of_b is None:
            raise ArgumentError(
                f"recipe is {recipe}, recipe_a {recipe_a}, recipe_b {recipe_b}; give recipe alone, or the "
                "others as a "
                "pair"
            )
        pair = (of_a, of_b)
    _gemm_nt(a, b, require_tensor("d", d), c, d.dtype, pair)


fp8_gemm_nt = fp8_fp4_gemm_nt


def bf16_gemm_nt(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None) -> None:
    """`gemm_nt` for BF16 under DeepGEMM's name: D = A @ B^T (+ C), A bfloat16 [M, K], B bfloat16 [N, K]."""
    require_bf16(a, b)
    _gemm_nt(a, b, require_tensor("d", d), c, d.dtype, None)


def require_bf16(a: Any, b: Any) -> None:
    """Refuse operands that are not bfloat16 tensors."""
    for name, operand in (("a", a), ("b", b)):
        given = getattr(operand, "dtype", type(operand).__name__)
        if given != torch.bfloat16:
            raise ArgumentError(
                f"{name} is {given}; bf16_gemm takes bfloat16 tensors, and gemm_nt all that there is"
            )


def nvfp4_dequantize(
    packed: torch.Tensor,
    block_scales: torch.Tensor,
    global_scale: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give the BF16 values of an NVFP4 tensor, of any rank; returns them.

    packed: E2M1 codes, two a byte (the low nibble is the even k): uint8, int8 or float4_e2m1fn_x2 [..., K/2],
        K a multiple of 16, 4-byte aligned.
    block_scales: float8_e4m3fn [..., K/16], row-major.
    global_scale: a multiplier, float32, of one element, or shaped as the first dimensions ([E] for E
        experts).
    out: bfloat16 [..., K], 16-byte aligned, apart from the inputs. Allocated if not given.

    All contiguous and on one device. The product code * scale is exact, its product with the global scale is
    rounded to float32 and that to BF16: bit for bit `formats.dequantize(...).to(torch.bfloat16)`.
    """
    key: Any
    try:
        key = (
            tensor_key(packed),
            tensor_key(block_scales),
            tensor_key(global_scale),
            out is not None and output_key(out),
            context.token(packed.device),
        )
    except AttributeError:
        return DequantizeRequest(packed, block_scales, global_scale, out).run(out)  # which says what is wrong
    request = _dequantize_requests.get(key)
    if request is None:
        request = _dequantize_requests.add(key, DequantizeRequest(packed, block_scales, global_scale, out))
    return request.run(out)


def w4a16_gemm_nt(
    x: torch.Tensor, weight: PackedNvfp4Weight, out: torch.Tensor | None = None
) -> torch.Tensor:
    """D = X @ W^T with packed NVFP4 weights, decoded in registers, and FP32 accumulation; returns D.

    x: bfloat16 or float16 [..., K], last stride 1, rows (all leading dimensions as one) 16-byte aligned.
    weight: W [N, K], from nvfp4_weight.pack() or nvfp4_repack().
    out: [..., N] of x's dtype, last stride 1, apart from x and weight. Allocated if not given.

    The effective weight is code * block scale * global scale; code * block scale is exact in x's dtype, and the
    global scale multiplies the FP32 sums. Equal calls give equal bits. Calls on one stream share a workspace, so a
    captured graph may run on another stream only while nothing else runs on the one that it was captured on.
    """
    if x.dim() not in (0, 2):
        given = None if out is None else _as_matrix(out, "out")
        return w4a16_gemm_nt(_as_matrix(x, "x"), weight, given).view(*x.shape[:-1], -1)
    return _w4a16("w4a16_gemm_nt", x, weight, out, None)


def m_grouped_w4a16_gemm_nt_contiguous(
    x: torch.Tensor,
    weight: PackedNvfp4Weight,
    m_indices: torch.Tensor,
    out: torch.Tensor | None = None,
    alignment: int = 128,
) -> torch.Tensor:
    """D[r] = X[r] @ W[m_indices[r]]^T with packed NVFP4 weights of experts; returns D.

    x: bfloat16 or float16 [M, K]; weight: W [E, N, K]; out: [M, N] of x's dtype; otherwise as `w4a16_gemm_nt` has it.
    m_indices: int32 [M] on the device, the expert of each row, -1 for rows of none, which are not written. Rows of an
        expert begin at a multiple of `alignment`, with rows of none behind them up to the next one.
    alignment: a multiple of 16, better of 128.

    The launch depends on no value of m_indices: a captured graph serves others too.
    """
    return _w4a16(
        "m_grouped_w4a16_gemm_nt_contiguous", x, weight, out, Grouping("contiguous", m_indices, alignment)
    )


def m_grouped_w4a16_gemm_nt_masked(
    x: torch.Tensor,
    weight: PackedNvfp4Weight,
    masked_m: torch.Tensor,
    expected_m: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """D[e] = X[e] @ W[e]^T for the first masked_m[e] rows, with packed NVFP4 weights of experts; returns D.

    x: bfloat16 or float16 [E, M, K]; weight: W [E, N, K]; out: [E, M, N] of x's dtype, of which rows from masked_m[e]
        on are not written; otherwise as `w4a16_gemm_nt` has it.
    masked_m: int32 [E] on the device, 0 to M. expected_m: how many it may be, for the choice of a kernel only.

    The launch depends on no value of masked_m: a captured graph serves others too.
    """
    grouping = Grouping("masked", masked_m, expected_m=expected_m)
    return _w4a16("m_grouped_w4a16_gemm_nt_masked", x, weight, out, grouping)


def _w4a16(
    operation: str,
    x: torch.Tensor,
    weight: PackedNvfp4Weight,
    out: torch.Tensor | None,
    grouping: Grouping | None,
) -> torch.Tensor:
    """Run an operation; a request that was made for the same tensors serves again."""
    key: Any
    try:
        key = (
            tensor_key(x),
            tensor_key(weight.data),
            tensor_key(weight.global_scale),
            weight.n,
            weight.k,
            out is not None and output_key(out),
            grouping and grouping.key(),
            context.token(x.device),
        )
    except AttributeError:
        return W4a16Request(operation, x, weight, out, grouping).run(out)  # which says what is wrong
    request = _w4a16_requests.get(key)
    if request is None:
        request = _w4a16_requests.add(key, W4a16Request(operation, x, weight, out, grouping))
    return request.run(out)


def _as_matrix(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return a view with all but the last dimension as one."""
    require_tensor(name, tensor)
    try:
        return tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        raise ArgumentError(
            f"{name} has shape {list(tensor.shape)} and strides {tuple(tensor.stride())}: its leading dimensions are "
            "not one in memory. Make it contiguous"
        ) from None


def nvfp4_repack(
    codes: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | float,
    out: torch.Tensor | None = None,
) -> PackedNvfp4Weight:
    """Pack an NVFP4 weight on the device that it is on: byte for byte `nvfp4_weight.pack`. Returns it.

    codes: E2M1, two a byte (the low nibble is the even k): uint8, int8 or float4_e2m1fn_x2 [N, K/2] or
        [E, N, K/2], K a multiple of 16, 8-byte aligned.
    scales: float8_e4m3fn [N, K/16] or [E, N, K/16], row-major, neither negative nor NaN, which is not checked:
        values are not read on the host.
    global_scale: a multiplier, positive and finite (not checked either): a number, or float32 of one element, or
        of E, in which case the weight holds this tensor itself.
    out: uint8 [NB, KB, 1152] or [E, NB, KB, 1152] with NB = ceil(N/16), KB = ceil(K/128), 16-byte aligned, apart
        from the inputs; the weight then holds it. Allocated if not given.

    All contiguous.
    """
    key: Any
    try:
        key = (
            tensor_key(codes),
            tensor_key(scales),
            out is not None and output_key(out),
            context.token(codes.device),
        )
    except AttributeError:
        return RepackRequest(codes, scales, out).run(global_scale, out)  # which says what is wrong
    request = _repack_requests.get(key)
    if request is None:
        request = _repack_requests.add(key, RepackRequest(codes, scales, out))
    return request.run(global_scale, out)


def _result_dtype(
    d: torch.Tensor | None, c: torch.Tensor | None, out_dtype: torch.dtype | None
) -> torch.dtype:
    for name, given in (("d", d), ("c", c)):
        if given is not None:
            require_tensor(name, given)
    if d is not None:
        if out_dtype not in (None, d.dtype):
            raise ArgumentError(f"out_dtype is {out_dtype}, but d is {d.dtype}; leave out one of them")
        return d.dtype
    return out_dtype or (torch.bfloat16 if c is None else c.dtype)
