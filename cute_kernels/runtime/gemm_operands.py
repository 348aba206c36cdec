"""Operands of scaled GEMMs: their formats as data, and the checks that a call must pass. Nothing reads a
value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from cute_kernels.scale_factors import require_packed
from cute_kernels.scale_layout import packed_stride, packed_words

from .arguments import Tiled
from .errors import ArgumentError
from .tensors import TMA_ALIGNMENT, describe, require_rows

Scaled = tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Elements [MN, K] and their scale factors, and for NVFP4 the global scale."""

INT32_MAX = 2**31 - 1
D_DTYPES = {torch.bfloat16: "bf16", torch.float32: "f32"}


@dataclass(frozen=True)
class OperandFormat:
    """How the elements of an operand and their scale factors lie in memory.

    dtypes: of the element tensor, which holds `packed` elements an item.
    granularity: elements of K that share a scale factor.
    scale_dtype: of the scale tensor, packed MN-major.
    scale_hint: how to get such scales from others.
    k_multiple: what K must be a multiple of.
    global_scale: whether a float32 factor of the whole operand comes third.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    packed: int
    granularity: int
    scale_dtype: torch.dtype
    scale_hint: str
    k_multiple: int
    global_scale: bool = False


MXFP4 = OperandFormat(
    name="MXFP4",
    dtypes=(torch.float4_e2m1fn_x2, torch.uint8, torch.int8),
    packed=2,
    granularity=32,
    scale_dtype=torch.int32,
    scale_hint="cute_kernels.scale_factors.pack_for_kernel() makes them from row-major scales, once",
    k_multiple=32,
)
NVFP4 = replace(
    MXFP4,
    name="NVFP4",
    granularity=16,
    scale_hint=f"{MXFP4.scale_hint}, with gran_k=16",
    k_multiple=16,
    global_scale=True,
)
FP8 = replace(
    MXFP4,
    name="FP8",
    dtypes=(torch.float8_e4m3fn,),
    packed=1,
    granularity=128,
    scale_hint=f"{MXFP4.scale_hint}, with gran_k=128; for MXFP8 pass recipe=(1, 1, 32)",
    k_multiple=1,
)
MXFP8 = replace(FP8, name="MXFP8", granularity=32, scale_hint=MXFP4.scale_hint)
FORMATS = (MXFP4, NVFP4, FP8, MXFP8)  # without a recipe, the first that fits

# What kernels call the operand types, by the formats of A and B ("family_dtype" of their configurations).
KINDS = {
    (MXFP4, MXFP4): "mxf4",
    (NVFP4, NVFP4): "nvf4",
    (FP8, FP8): "mxf8_k128",
    (MXFP8, MXFP8): "mxf8",
    (FP8, MXFP4): "mxf8_k128_mxf4",
    (MXFP8, MXFP4): "mxf8_mxf4",
    (MXFP4, FP8): "mxf4_mxf8_k128",
    (MXFP4, MXFP8): "mxf4_mxf8",
}
# FP4 that meets FP8 is unpacked by TMA, which takes only whole groups of 128 codes, and rows 32 bytes apart.
UNPACKED_K_MULTIPLE, UNPACKED_ALIGNMENT = 128, 32


@dataclass(frozen=True)
class Operand:
    """A K-major operand of `mn` rows and `k` elements along K, with its scale factors."""

    name: str
    format: OperandFormat
    elements: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor | None = None

    @property
    def mn(self) -> int:
        """Rows."""
        return self.elements.shape[0]

    @property
    def k(self) -> int:
        """Elements along K."""
        return self.elements.shape[1] * self.format.packed

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Give the tensors with their names for messages."""
        yield self.name, self.elements
        yield f"{self.name}'s scale factors", self.scales
        if self.global_scale is not None:
            yield f"{self.name}'s global scale", self.global_scale


def operand(name: str, given: Any, granularity: int | None = None) -> Operand:
    """Recognise an operand, a pair of tensors or three, by number, dtypes and the granularity along K (None: any).

    Raises ArgumentError for what no format has.
    """
    parts = tuple(given) if isinstance(given, tuple | list) else ()
    if len(parts) not in (2, 3) or not all(isinstance(part, torch.Tensor) for part in parts):
        raise ArgumentError(
            f"{name} is a {type(given).__name__}; an operand is a pair of tensors (elements, scale factors), "
            "and in NVFP4 has the global scale as a third"
        )
    elements, scales = parts[:2]
    of_dtype = [f for f in FORMATS if elements.dtype in f.dtypes]
    if not of_dtype:
        known = "; ".join(f"{f.name} as {_names(f.dtypes)}" for f in FORMATS)
        raise ArgumentError(f"{name} is {describe(elements)}; supported elements are {known}")
    of_parts = [f for f in of_dtype if f.global_scale == (len(parts) == 3)]
    fitting = [f for f in of_parts if granularity in (None, f.granularity)]
    if not fitting:
        known = "; ".join(f"{f.name} has {2 + f.global_scale} and {f.granularity}" for f in of_dtype)
        raise ArgumentError(
            f"{name} is {describe(elements)} in {len(parts)} tensors with a recipe of {granularity} elements a "
            f"scale factor; of this dtype {known}"
        )
    form = fitting[0]
    if scales.dtype != form.scale_dtype:
        wanted = f"{form.name} takes {_names((form.scale_dtype,))}: {form.scale_hint}"
        raise ArgumentError(f"{name}'s scale factors are {describe(scales)}; {wanted}")
    for what, tensor in ((name, elements), (f"{name}'s scale factors", scales)):
        if tensor.dim() != 2:
            raise ArgumentError(f"{what} is {describe(tensor)}; gemm_nt takes matrices of two dimensions")
    if form.global_scale and (parts[2].dtype != torch.float32 or parts[2].numel() != 1):
        raise ArgumentError(
            f"{name}'s global scale is {describe(parts[2])}; {form.name} takes one float32, a multiplier"
        )
    return Operand(name, form, *parts)


def kind(a: Operand, b: Operand) -> str:
    """Return what kernels call the operands' types. Raises ArgumentError for shapes and formats that do not
    go
    together."""
    if (a.format, b.format) not in KINDS:
        known = ", ".join(f"{x.name} x {y.name}" for x, y in KINDS)
        raise ArgumentError(f"a is {a.format.name} and b is {b.format.name}; supported are {known}")
    if a.k != b.k:
        raise ArgumentError(
            f"a is {describe(a.elements)}, so K = {a.k}, but b is {describe(b.elements)}, so K = {b.k}; "
            "gemm_nt takes "
            "a of [M, K] and b of [N, K]"
        )
    for operand_ in (a, b):
        if a.k % operand_.format.k_multiple:
            raise ArgumentError(
                f"K is {a.k}; {operand_.format.name} needs a multiple of {operand_.format.k_multiple}. Pad "
                "both "
                "operands along K with zeros"
            )
    if a.format.packed != b.format.packed and a.k % UNPACKED_K_MULTIPLE:
        raise ArgumentError(
            f"K is {a.k}; {a.format.name} x {b.format.name} needs a multiple of {UNPACKED_K_MULTIPLE}, because TMA "
            "unpacks FP4 that meets FP8. Pad both operands along K with zeros"
        )
    if max(a.mn, b.mn, a.k) > INT32_MAX:
        raise ArgumentError(f"M, N, K are {a.mn}, {b.mn}, {a.k}; each must be below 2^31. Split the problem")
    return KINDS[a.format, b.format]


def require_k_major(given: Operand, unpacked: bool) -> None:
    """Refuse elements that are not K-major, or that TMA cannot take; it takes less if it is to unpack them."""
    elements = given.elements
    if elements.stride(0) == 1 and elements.stride(1) != 1:
        raise ArgumentError(
            f"{given.name} is {describe(elements)}: MN-major. {given.format.name} must be K-major (stride 1 "
            "along K), "
            + (
                f"because {given.format.packed} elements of K share a byte; unpack, transpose and pack it again"
                if given.format.packed > 1
                else "for now; make it so with .contiguous()"
            )
        )
    require_rows(elements, given.name, UNPACKED_ALIGNMENT if unpacked else TMA_ALIGNMENT)


def tiled_scales(given: Operand) -> Tiled:
    """Return packed MN-major scale factors as a tensor map sees them: MN innermost.

    Raises ArgumentError unless they lie exactly as `scale_factors.pack` places them.
    """
    form, scales, mn = given.format, given.scales, given.mn
    columns = -(-given.k // form.granularity)
    try:
        require_packed(scales, mn, columns, f"{given.name}'s scale factors")
    except ValueError as error:
        raise ArgumentError(f"{error}. {form.scale_hint}") from None
    if scales.data_ptr() % TMA_ALIGNMENT:
        raise ArgumentError(
            f"{given.name}'s scale factors start at address {scales.data_ptr():#x}, and TMA takes multiples "
            "of "
            f"{TMA_ALIGNMENT} bytes only. Copy them"
        )
    size = scales.element_size()
    return Tiled(scales.data_ptr(), mn * size, (packed_words(columns),), (packed_stride(mn) * size,))


def d_dtype(dtype: torch.dtype) -> str:
    """Return what kernels call the dtype of D. Raises ArgumentError for one that none writes."""
    if dtype not in D_DTYPES:
        raise ArgumentError(f"d is to be {_names((dtype,))}; supported are {_names(D_DTYPES)}")
    return D_DTYPES[dtype]


def require_output(name: str, tensor: torch.Tensor, m: int, n: int, dtype: torch.dtype) -> None:
    """Refuse a C or D that is not a matrix [m, n] of a dtype."""
    if tuple(tensor.shape) != (m, n) or tensor.dtype != dtype:
        raise ArgumentError(f"{name} is {describe(tensor)}; this call takes {_names((dtype,))} [{m}, {n}]")


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)
