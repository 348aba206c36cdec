"""A call of nvfp4_repack, from its tensors to a launch."""

from __future__ import annotations

import torch

from cute_kernels import w4a16_layout as layout
from cute_kernels.heuristics import RepackProblem
from cute_kernels.nvfp4_weight import PackedNvfp4Weight, global_scales, weight_shape

from .errors import ArgumentError
from .plan import Call, Plan
from .tensors import GRID_YZ_MAX, describe, flat, require_aligned, require_one_device

_CODES_ALIGNMENT = 8  # bytes
_OUT_ALIGNMENT = 16


class RepackRequest:
    """A packed weight from given tensors, into any `out`."""

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor | None) -> None:
        """Check a call and choose its kernel. out: like that of every run, None if the runs allocate it."""
        given = {"codes": codes, "scales": scales} | ({} if out is None else {"out": out})
        for name, value in given.items():
            if not isinstance(value, torch.Tensor):
                raise ArgumentError(f"{name} is a {type(value).__name__}; it must be a tensor")
        self._device = require_one_device(given)
        self._shape = weight_shape(codes, scales)
        *lead, n, k = self._shape
        self._packed_shape = (*lead, *layout.units(n, k), layout.UNIT_BYTES)
        if out is not None and (out.dtype != torch.uint8 or tuple(out.shape) != self._packed_shape):
            raise ArgumentError(f"out is {describe(out)}; this call takes uint8 {list(self._packed_shape)}")
        experts = lead[0] if lead else 1
        if experts > GRID_YZ_MAX:
            raise ArgumentError(f"there are {experts} experts; at most {GRID_YZ_MAX}. Split the call")
        self._inputs = {"codes": flat(codes, "codes"), "scales": flat(scales, "scales")}
        require_aligned(self._inputs["codes"], "codes", _CODES_ALIGNMENT)
        if out is not None:
            flat(out, "out")
        self._plan = Plan("nvfp4_repack", RepackProblem(experts, n, k), self._device)

    def run(self, global_scale: torch.Tensor | float, out: torch.Tensor | None) -> PackedNvfp4Weight:
        """Launch on the current stream, into `out` or a new tensor; return the weight that holds it."""
        if out is None:
            out = torch.empty(self._packed_shape, dtype=torch.uint8, device=self._device)
        launch = self._plan.launcher(out, self._call)
        n, k = self._shape[-2:]
        weight = PackedNvfp4Weight(out, n, k, global_scales(global_scale, self._shape, self._device))
        launch()
        return weight

    def _call(self, out: torch.Tensor) -> Call:
        result = flat(out, "out")
        require_aligned(result, "out", _OUT_ALIGNMENT)
        for name, tensor in self._inputs.items():
            if tensor.overlaps(result):
                raise ArgumentError(
                    f"out shares memory with {name} ({result} and {tensor}). Give another out"
                )
        n, k = self._shape[-2:]
        arguments = {name: tensor.address for name, tensor in self._inputs.items()}
        return Call(
            {**arguments, "packed": result.address, "n": n, "blocks": k // layout.BLOCK},
            {**self._inputs, "out": result},
        )
