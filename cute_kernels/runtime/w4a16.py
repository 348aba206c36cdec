"""A call of w4a16_gemm_nt, from its tensors to a launch."""

from __future__ import annotations

import torch

from cute_kernels import w4a16_layout
from cute_kernels.heuristics import W4a16Problem
from cute_kernels.nvfp4_weight import PackedNvfp4Weight

from .arguments import Argument, Tiled
from .errors import ArgumentError
from .plan import Call, Plan
from .tensors import describe, flat, require_aligned, require_one_device, require_rows, tiled

X_DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}

_ALIGNMENT = 16  # bytes, of packed weights: TMA takes no others


class W4a16Request:
    """D = X @ W^T for given X [M, K] and packed W, and any D of one row stride."""

    def __init__(self, x: torch.Tensor, weight: PackedNvfp4Weight, out: torch.Tensor | None) -> None:
        """Check a call and choose its kernel. out: like that of every run, None if the runs allocate it."""
        if not isinstance(weight, PackedNvfp4Weight):
            raise ArgumentError(
                f"weight is a {type(weight).__name__}; it must be a PackedNvfp4Weight, as nvfp4_weight.pack() makes it"
            )
        if weight.experts is not None:
            raise ArgumentError(
                f"weight holds {weight.experts} experts ({describe(weight.data)}); this operation takes one matrix"
            )
        if x.dtype not in X_DTYPES or x.dim() != 2 or x.shape[1] != weight.k:
            raise ArgumentError(
                f"x is {describe(x)}; a weight of {list(weight.shape)} takes bfloat16 or float16 [M, {weight.k}]"
            )
        given = {"x": x, "weight": weight.data}
        if out is not None:
            given["out"] = out
        self._device = require_one_device(given)
        self._m, self._n, self._dtype = x.shape[0], weight.n, x.dtype
        if out is not None:
            self._require_output(out)
        self._plan = None
        if self._m == 0:
            return
        require_rows(x, "x")
        packed = flat(weight.data, "weight")
        require_aligned(packed, "weight", _ALIGNMENT)
        blocks, units = w4a16_layout.units(weight.n, weight.k)
        row_bytes = units * w4a16_layout.UNIT_BYTES
        self._inputs = {
            "x": tiled(x),
            "weight": Tiled(
                packed.address, w4a16_layout.UNIT_BYTES, (units, blocks), (w4a16_layout.UNIT_BYTES, row_bytes)
            ),
            "global_scale": flat(weight.global_scale, "global_scale"),
        }
        self._k = weight.k
        problem = W4a16Problem(self._m, self._n, self._k, X_DTYPES[x.dtype])
        self._plan = Plan("w4a16_gemm_nt", problem, self._device)

    def run(self, out: torch.Tensor | None) -> torch.Tensor:
        """Launch on the current stream, into `out` or a new tensor; return it."""
        if out is None:
            out = torch.empty((self._m, self._n), dtype=self._dtype, device=self._device)
        if self._plan is not None:
            self._plan.launch(out, self._call)
        return out

    def _require_output(self, out: torch.Tensor) -> None:
        if out.dtype != self._dtype or tuple(out.shape) != (self._m, self._n):
            dtype = str(self._dtype).removeprefix("torch.")
            raise ArgumentError(f"out is {describe(out)}; this call takes {dtype} {[self._m, self._n]}")
        if (self._n > 1 and out.stride(1) != 1) or (self._m > 1 and out.stride(0) < self._n):
            raise ArgumentError(
                f"out is {describe(out)}: its last dimension must be contiguous and its rows apart. Give another out"
            )

    def _call(self, out: torch.Tensor) -> Call:
        size = out.element_size()
        stride = out.stride(0) if self._m > 1 else self._n
        result = Tiled(out.data_ptr(), self._n * size, (self._m,), (stride * size,))
        for name, tensor in self._inputs.items():
            if tensor.overlaps(result):
                raise ArgumentError(
                    f"out shares memory with {name} ({result} and {tensor}). Give another out"
                )
        # The kernel stores 16 bytes at once where every row of D starts at a multiple of them.
        aligned = result.address % 16 == 0 and stride * size % 16 == 0
        arguments: dict[str, Argument] = {
            "map_x": self._inputs["x"],
            "map_w": self._inputs["weight"],
            "d": result.address,
            "global_scale": self._inputs["global_scale"].address,
            "m": self._m,
            "n": self._n,
            "k": self._k,
            "ldd": stride,
            "aligned": int(aligned),
        }
        return Call(arguments, {**self._inputs, "out": result})
