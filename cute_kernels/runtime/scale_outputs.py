"""The scale factors that a kernel writes for a quantized D: where they go, and what is refused there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cute_kernels.scale_factors import empty_packed, require_packed
from cute_kernels.scale_layout import blocked_bytes, packed_stride, packed_words

from .arguments import Tiled
from .errors import ArgumentError
from .tensors import TMA_ALIGNMENT, describe

SfLayout = Literal["packed", "blocked"]


@dataclass(frozen=True)
class ScaleOutput:
    """Scale factors [m, groups] of a D, in a layout that the next product takes for its A."""

    m: int
    groups: int
    layout: SfLayout

    def allocate(self, device: torch.device) -> torch.Tensor:
        """Return new memory for them."""
        if self.layout == "blocked":
            return torch.empty(blocked_bytes(self.m, self.groups), dtype=torch.uint8, device=device)
        return empty_packed((self.m, self.groups), device)

    def require(self, scales: torch.Tensor) -> None:
        """Refuse other dtypes, shapes or strides, and an address that the next product cannot load from."""
        if self.layout == "blocked":
            size = blocked_bytes(self.m, self.groups)
            if scales.dtype != torch.uint8 or tuple(scales.shape) != (size,) or not scales.is_contiguous():
                raise ArgumentError(
                    f"d's scale factors are {describe(scales)}; the 128 x 4 layout of [{self.m}, {self.groups}] "
                    f"takes uint8 [{size}], contiguous"
                )
        else:
            if scales.dtype != torch.int32:
                raise ArgumentError(
                    f"d's scale factors are {describe(scales)}; the packed layout takes int32 "
                    f"[{self.m}, {packed_words(self.groups)}], MN-major"
                )
            try:
                require_packed(scales, self.m, self.groups, "d's scale factors")
            except ValueError as error:
                raise ArgumentError(str(error)) from None
        if scales.numel() and scales.data_ptr() % TMA_ALIGNMENT:
            raise ArgumentError(
                f"d's scale factors start at address {scales.data_ptr():#x}; the next product takes multiples of 16 "
                "bytes only. Copy them with .clone()"
            )

    def tiled(self, scales: torch.Tensor) -> Tiled:
        """Return the memory that is written."""
        if self.layout == "blocked":
            return Tiled(scales.data_ptr(), scales.numel())
        words, stride = packed_words(self.groups), packed_stride(self.m)
        return Tiled(scales.data_ptr(), self.m * 4, (words,), (stride * 4,))
