"""Operands of GEMMs: their formats as data, and the checks that a call must pass. Nothing reads a
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
from .tensors import TMA_ALIGNMENT, describe, require_rows, require_tensor

Scaled = tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Elements [MN, K] and their scale factors, and for NVFP4 the global scale."""

Given = Scaled | torch.Tensor
"""An operand as a call gives it: with scale factors, or in BF16 without."""

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
    mn_major: whether elements may be contiguous along M or N instead of K.

    granularity is 0 and scale_dtype means nothing where there are no scale factors.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    packed: int
    granularity: int
    scale_dtype: torch.dtype
    scale_hint: str
    k_multiple: int
    global_scale: bool = False
    mn_major: bool = False

    @property
    def parts(self) -> int:
        """Tensors of an operand."""
        return 1 + (self.granularity > 0) + self.global_scale


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
    mn_major=True,
)
MXFP8 = replace(FP8, name="MXFP8", granularity=32, scale_hint=MXFP4.scale_hint)
BF16 = replace(FP8, name="BF16", dtypes=(torch.bfloat16,), granularity=0, scale_hint="")
FORMATS = (MXFP4, NVFP4, FP8, MXFP8, BF16)  # without a recipe, the first that fits

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
    (BF16, BF16): "bf16",
}
# FP4 that meets FP8 is unpacked by TMA, which takes only whole groups of 128 codes, and rows 32 bytes apart.
UNPACKED_K_MULTIPLE, UNPACKED_ALIGNMENT = 128, 32


@dataclass(frozen=True)
class Operand:
    """An operand of `mn` rows and `k` elements along K, with its scale factors.

    elements: [MN, K], or where two share a byte [MN, K/2].
    """

    name: str
    format: OperandFormat
    elements: torch.Tensor
    scales: torch.Tensor | None = None
    global_scale: torch.Tensor | None = None

    @property
    def mn(self) -> int:
        """Rows."""
        return self.elements.shape[0]

    @property
    def k(self) -> int:
        """Elements along K."""
        return self.elements.shape[1] * self.format.packed

    @property
    def major(self) -> str:
        """The dimension that is contiguous, "k" or "mn"; K where both are, unless it is a single element."""
        rows, columns = self.elements.stride()
        return "mn" if rows == 1 and (columns != 1 or self.k == 1 < self.mn) else "k"

    @property
    def lines(self) -> torch.Tensor:
        """The elements as a row-major matrix, [K, MN] where they are MN-major."""
        return self.elements if self.major == "k" else self.elements.t()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Give the tensors with their names for messages."""
        yield self.name, self.elements
        if self.scales is not None:
            yield f"{self.name}'s scale factors", self.scales
        if self.global_scale is not None:
            yield f"{self.name}'s global scale", self.global_scale


def operand(name: str, given: Any, granularity: int | None = None) -> Operand:
    """Recognise an operand, one to three tensors, by number, dtypes and the granularity along K (None: any).

    Raises ArgumentError for what no format has.
    """
    parts = (
        (given,)
        if isinstance(given, torch.Tensor)
        else tuple(given)
        if isinstance(given, tuple | list)
        else ()
    )
    if len(parts) not in (1, 2, 3) or not all(isinstance(part, torch.Tensor) for part in parts):
        raise ArgumentError(
            f"{name} is a {type(given).__name__}; an operand is a pair of tensors (elements, scale factors), "
            "in NVFP4 has the global scale as a third, and in BF16 is one tensor"
        )
    for what, part in zip((name, f"{name}'s scale factors", f"{name}'s global scale"), parts, strict=False):
        require_tensor(what, part)
    elements = parts[0]
    of_dtype = [f for f in FORMATS if elements.dtype in f.dtypes]
    if not of_dtype:
        known = "; ".join(f"{f.name} as {names(f.dtypes)}" for f in FORMATS)
        raise ArgumentError(f"{name} is {describe(elements)}; supported elements are {known}")
    fitting = [f for f in of_dtype if f.parts == len(parts) and granularity in (None, f.granularity)]
    if not fitting:
        known = "; ".join(f"{f.name} has {f.parts} and {f.granularity}" for f in of_dtype)
        tensors = "1 tensor" if len(parts) == 1 else f"{len(parts)} tensors"
        raise ArgumentError(
            f"{name} is {describe(elements)} in {tensors} with a recipe of {granularity} elements a "
            f"scale factor; of this dtype {known}"
        )
    form = fitting[0]
    result = Operand(name, form, *parts)
    if result.scales is not None and result.scales.dtype != form.scale_dtype:
        wanted = f"{form.name} takes {names((form.scale_dtype,))}: {form.scale_hint}"
        wanted += "" if form.global_scale else "; or float32, which are packed at every call"
        raise ArgumentError(f"{name}'s scale factors are {describe(result.scales)}; {wanted}")
    for what, tensor in list(result.tensors())[:2]:
        if tensor.dim() != 2:
            raise ArgumentError(f"{what} is {describe(tensor)}; gemm_nt takes matrices of two dimensions")
    if form.global_scale and (parts[2].dtype != torch.float32 or parts[2].numel() != 1):
        raise ArgumentError(
            f"{name}'s global scale is {describe(parts[2])}; {form.name} takes one float32, a multiplier"
        )
    return result


def kind(a: Operand, b: Operand) -> str:
    """Return what kernels call the operands' types. Raises ArgumentError for shapes and formats that do not
    go
    together."""
    if (a.format, b.format) not in KINDS:
        known = ", ".join(f"{x.name} x {y.name}" for x, y in KINDS)
        raise ArgumentError(f"a is {a.format.name} and b is {b.format.name}; supported are {known}")
    for given, other in ((a, b), (b, a)):
        _require_major(given, other)
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


def _require_major(given: Operand, other: Operand) -> None:
    """Refuse elements that are contiguous along M or N where their format needs K, or the other operand's."""
    if given.major == "k" or (given.format.mn_major and other.format.mn_major):
        return
    if given.format.packed > 1:
        why = f"because {given.format.packed} elements of K share a byte; unpack, transpose and pack it again"
    else:
        why = f"beside {other.format.name}; make it so with .contiguous()"
    raise ArgumentError(
        f"{given.name} is {describe(given.elements)}: MN-major. {given.format.name} must be K-major (stride 1 "
        f"along K), {why}"
    )


def require_lines(given: Operand, unpacked: bool) -> None:
    """Refuse elements that TMA cannot take line by line; it takes less if it is to unpack them."""
    name = given.name if given.major == "k" else f"{given.name}, transposed,"
    require_rows(given.lines, name, UNPACKED_ALIGNMENT if unpacked else TMA_ALIGNMENT)


def tiled_scales(given: Operand, scales: torch.Tensor) -> Tiled:
    """Return an operand's packed MN-major scale factors as a tensor map sees them: MN innermost.

    Raises ArgumentError unless they lie exactly as `scale_factors.pack` places them.
    """
    form, mn = given.format, given.mn
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
        raise ArgumentError(f"d is to be {names((dtype,))}; supported are {names(D_DTYPES)}")
    return D_DTYPES[dtype]


def require_output(name: str, tensor: torch.Tensor, m: int, n: int, dtype: torch.dtype) -> None:
    """Refuse a C or D that is not a matrix [m, n] of a dtype."""
    if tuple(tensor.shape) != (m, n) or tensor.dtype != dtype:
        raise ArgumentError(f"{name} is {describe(tensor)}; this call takes {names((dtype,))} [{m}, {n}]")


def names(dtypes: Iterable[torch.dtype]) -> str:
    """Return dtypes as messages call them."""
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)
