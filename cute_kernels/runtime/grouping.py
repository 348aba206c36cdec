"""How the rows of a grouped product belong to groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from .errors import ArgumentError
from .tensors import describe, require_number, tensor_key


@dataclass(frozen=True)
class Grouping:
    """A layout of rows in memory, and the tensor on the device that says which are whose.

    kind: of `layout`, which is int32:
        "contiguous"  a group for each row, negative for rows of none
        "prefix"      the end of each group's rows, which begin where those before end, rounded up
        "masked"      the rows in use of each group's matrix
    alignment: what a group's first row is a multiple of; masked: not read.
    expected_m: rows of a group, as a hint; 0: not known. Masked: must be known.
    """

    kind: Literal["contiguous", "prefix", "masked"]
    layout: torch.Tensor
    alignment: int = 1
    expected_m: int = 0

    @property
    def name(self) -> str:
        """What operations call the layout."""
        return {"contiguous": "m_indices", "prefix": "grouped_layout", "masked": "masked_m"}[self.kind]

    def require(self, rows: int, groups: int) -> None:
        """Refuse a layout that is not of so many rows and groups. Values are not read."""
        layout, count = self.layout, rows if self.kind == "contiguous" else groups
        for name, hint in (("alignment", self.alignment), ("expected_m", self.expected_m)):
            require_number(name, hint)
        if layout.dtype != torch.int32 or tuple(layout.shape) != (count,) or not layout.is_contiguous():
            raise ArgumentError(
                f"{self.name} is {describe(layout)}; this call takes contiguous int32 [{count}]"
            )
        if self.kind == "masked" and self.expected_m < 1:
            raise ArgumentError(f"expected_m is {self.expected_m}; it must be positive, and is a hint only")
        if self.alignment < 1:
            raise ArgumentError(f"alignment is {self.alignment}; it must be positive")

    def key(self) -> tuple[Any, ...]:
        """All of it that a launch depends on."""
        return self.kind, *tensor_key(self.layout), self.alignment, self.expected_m


def contiguous(
    layout: torch.Tensor, alignment: int, use_psum_layout: bool, expected_m: int | None
) -> Grouping:
    """Return the grouping of the rows of one matrix, as operations take it: a group a row, or an end a group."""
    if expected_m is not None:
        require_number("expected_m_for_psum_layout", expected_m)
    if expected_m is not None and (expected_m < 1 or not use_psum_layout):
        raise ArgumentError(
            f"expected_m_for_psum_layout is {expected_m} and use_psum_layout {use_psum_layout}; it must be positive, "
            "and goes with use_psum_layout=True alone"
        )
    return Grouping("prefix" if use_psum_layout else "contiguous", layout, alignment, expected_m or 0)
