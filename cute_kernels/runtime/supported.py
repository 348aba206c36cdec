"""Operands that operations have kernels for, in whatever folder: others are refused before a kernel is looked for."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import ArgumentError
from .gemm_operands import KINDS, Operand
from .tensors import describe

# By what kernels call them. Of products that are quantized, and of those with a gap in every head, by the type of D.
QUANTIZED = {"mxf8": ("mxf4", "nvf4", "mxf8", "mxf8_k128", "mxf8_mxf4"), "nvf4": ("nvf4", "mxf8")}
HEADS = {"bf16": ("mxf4", "nvf4", "mxf8", "mxf8_k128"), "f32": ("mxf8_k128",)}
QUANTIZED_GROUPS = ("mxf8", "mxf8_k128")
N_MAJOR_GROUPS = ("mxf8", "mxf8_k128", "bf16")  # of groups by indices, where B may be N-major

_NAMES = {kind: f"{a.name} x {b.name}" for (a, b), kind in KINDS.items()}


def require_operands(operands: str, kinds: Iterable[str], what: str) -> None:
    """Refuse operands that no kernel of an operation (`what`) takes."""
    if operands not in kinds:
        known = ", ".join(_NAMES[kind] for kind in kinds)
        raise ArgumentError(f"a and b are {_NAMES[operands]}; {what} takes {known}")


def require_k_major(given: Operand, what: str) -> None:
    """Refuse an operand that is contiguous along M or N."""
    if given.major != "k":
        raise ArgumentError(
            f"{given.name} is {describe(given.elements)}: MN-major. {what} takes it K-major (stride 1 along K); make "
            "it so with .contiguous()"
        )
