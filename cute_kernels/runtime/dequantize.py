"""A call of nvfp4_dequantize, from its tensors to a launch."""

from __future__ import annotations

import torch

from cute_kernels.heuristics import DequantizeProblem

from .errors import ArgumentError
from .plan import Call, Plan
from .tensors import GRID_YZ_MAX, describe, flat, require_aligned, require_one_device

PACKED_DTYPES = (torch.uint8, torch.int8, torch.float4_e2m1fn_x2)
BLOCK = 16  # elements that share a scale factor

_PACKED_ALIGNMENT = 4  # bytes
_OUT_ALIGNMENT = 16


class DequantizeRequest:
    """out = packed * block_scales * global_scale for given tensors, and any `out`."""

    def __init__(
        self,
        packed: torch.Tensor,
        block_scales: torch.Tensor,
        global_scale: torch.Tensor,
        out: torch.Tensor | None,
    ) -> None:
        """Check a call and choose its kernel. out: like that of every run, None if the runs allocate it."""
        given = {"packed": packed, "block_scales": block_scales, "global_scale": global_scale}
        for name, value in given.items():
            if not isinstance(value, torch.Tensor):
                raise ArgumentError(
                    f"{name} is a {type(value).__name__}; it must be a tensor"
                    + (
                        ", float32 on the device, so that no call waits for a copy"
                        if name == "global_scale"
                        else ""
                    )
                )
        if out is not None:
            given["out"] = out
        self._device = require_one_device(given)
        self._shape = _result_shape(packed, block_scales)
        groups = _groups(global_scale, self._shape)
        if out is not None and (out.dtype != torch.bfloat16 or out.shape != self._shape):
            raise ArgumentError(f"out is {describe(out)}; this call takes bfloat16 {list(self._shape)}")
        self._plan = None
        if self._shape.numel() == 0:
            return
        self._inputs = {name: flat(tensor, name) for name, tensor in given.items() if name != "out"}
        for name, alignment in (("packed", _PACKED_ALIGNMENT), ("global_scale", _PACKED_ALIGNMENT)):
            require_aligned(self._inputs[name], name, alignment)
        if out is not None:
            flat(out, "out")
        self._blocks = self._shape.numel() // BLOCK // groups
        self._plan = Plan("nvfp4_dequantize", DequantizeProblem(groups, self._blocks), self._device)

    def run(self, out: torch.Tensor | None) -> torch.Tensor:
        """Launch on the current stream, into `out` or a new tensor; return it."""
        if out is None:
            out = torch.empty(self._shape, dtype=torch.bfloat16, device=self._device)
        if self._plan is not None:
            self._plan.launch(out, self._call)
        return out

    def _call(self, out: torch.Tensor) -> Call:
        result = flat(out, "out")
        require_aligned(result, "out", _OUT_ALIGNMENT)
        for name, tensor in self._inputs.items():
            if tensor.overlaps(result):
                raise ArgumentError(
                    f"out shares memory with {name} ({result} and {tensor}). Give another out"
                )
        tensors = {**self._inputs, "out": result}
        addresses = {name: tensor.address for name, tensor in tensors.items()}
        addresses["scales"] = addresses.pop("block_scales")
        return Call({**addresses, "blocks": self._blocks}, tensors)


def _result_shape(packed: torch.Tensor, block_scales: torch.Tensor) -> torch.Size:
    if packed.dtype not in PACKED_DTYPES or packed.dim() < 1:
        raise ArgumentError(
            f"packed is {describe(packed)}; supported are uint8, int8 and float4_e2m1fn_x2 of [..., K/2], "
            "two E2M1 "
            "elements a byte"
        )
    k = 2 * packed.shape[-1]
    if k % BLOCK:
        raise ArgumentError(
            f"K is {k} (packed is {describe(packed)}); it must be a multiple of {BLOCK}. Pad it with zeros"
        )
    wanted = (*packed.shape[:-1], k // BLOCK)
    if block_scales.dtype != torch.float8_e4m3fn or tuple(block_scales.shape) != wanted:
        raise ArgumentError(
            f"block_scales are {describe(block_scales)}; packed of {list(packed.shape)} takes float8_e4m3fn "
            f"{list(wanted)}, row-major. View bytes as that dtype; bring other layouts to row-major first"
        )
    return torch.Size((*packed.shape[:-1], k))


def _groups(global_scale: torch.Tensor, shape: torch.Size) -> int:
    """Return the number of global scales."""
    if global_scale.dtype != torch.float32:
        raise ArgumentError(f"global_scale is {describe(global_scale)}; it must be float32")
    if global_scale.numel() == 1:
        return 1
    leading = tuple(shape[: global_scale.dim()])
    if tuple(global_scale.shape) != leading or global_scale.dim() >= len(shape):
        raise ArgumentError(
            f"global_scale is {describe(global_scale)}; a result of {list(shape)} takes one scale, or one "
            "for each "
            "index of its first dimensions"
        )
    if global_scale.numel() > GRID_YZ_MAX:
        raise ArgumentError(
            f"there are {global_scale.numel()} global scales; at most {GRID_YZ_MAX}. Split the call"
        )
    return max(1, global_scale.numel())
