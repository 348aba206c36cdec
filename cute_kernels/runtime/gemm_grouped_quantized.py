"""A call of a grouped GEMM whose result is quantized, from its operands to a launch."""

from __future__ import annotations

import torch

from cute_kernels.formats import MX_GROUP, Rule

from .arguments import Tiled
from .errors import ArgumentError
from .gemm_grouped import GroupedGemmRequest
from .gemm_operands import Given
from .gemm_quantized import CARRY, Quantized, require_known, require_pair
from .grouping import Grouping
from .plan import Ahead, Call
from .scale_outputs import ScaleOutput, SfLayout
from .tensors import TMA_ALIGNMENT, require_one_device


class QuantizedGroupedGemmRequest(GroupedGemmRequest):
    """(D, its scale factors) = quantize(A[r] @ B[group of r]^T) in MXFP8, as QuantizedGemmRequest has it."""

    _d_dtype, _dtype, _columns, _unit = "mxf8", torch.float8_e4m3fn, TMA_ALIGNMENT, 4

    def __init__(
        self,
        operation: str,
        a: Given,
        b: Given,
        out: Quantized | None,
        grouping: Grouping,
        granularities: tuple[int | None, int | None],
        rule: Rule,
        layout: SfLayout,
    ) -> None:
        """Check a call and choose its kernel. out: like that of every run, None if the runs allocate it."""
        require_known(rule, layout)
        require_pair(out)
        super().__init__(operation, a, b, None if out is None else out[0], grouping, granularities)
        self._scales = ScaleOutput(self._m, -(-self._n // MX_GROUP), layout)
        self._numbers = {"sfd_blocked": int(layout == "blocked"), "sfd_carry": CARRY[rule]}
        if out is not None:
            require_one_device({"d": out[0], "d's scale factors": out[1]})
            self._scales.require(out[1])
            if self._plan is not None:
                self._written_scales(*out)

    def run_quantized(self, out: Quantized | None, packing: Ahead | None = None) -> Quantized:
        """Launch on the current stream, into `out` or new tensors; return them. packing: what goes ahead of it."""
        d, scales = (self._allocate(), self._scales.allocate(self._device)) if out is None else out
        if self._plan is not None:
            self._plan.launch(d, self._call_quantized, scales, ahead=(packing,))
        return d, scales

    def _written_scales(self, d: torch.Tensor, scales: torch.Tensor) -> Tiled:
        """Return the scale factors. Refuse those that lie over D or an input."""
        written = self._scales.tiled(scales)
        others = {**self._inputs, **self._factors, "the layout": self._layout, "d": self._output(d)}
        for name, tensor in others.items():
            if tensor.overlaps(written):
                raise ArgumentError(
                    f"d's scale factors share memory with {name} ({tensor} and {written}). Give others"
                )
        return written

    def _call_quantized(self, d: torch.Tensor, scales: torch.Tensor) -> Call:
        written, call = self._written_scales(d, scales), self._call(d)
        arguments = {**call.arguments, "sfd": written.address, **self._numbers}
        return Call(arguments, {**call.tensors, "d's scale factors": written})
