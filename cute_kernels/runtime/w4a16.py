"""A call of a GEMM with packed NVFP4 weights, from its tensors to a launch."""

from __future__ import annotations

import torch

from cute_kernels import w4a16_layout
from cute_kernels.heuristics import W4a16Problem
from cute_kernels.nvfp4_weight import PackedNvfp4Weight

from .arguments import Argument, Tiled
from .errors import ArgumentError
from .grouping import Grouping
from .plan import Call, Plan
from .tensors import TMA_ALIGNMENT, describe, flat, require_aligned, require_one_device, tiled_matrices

X_DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}


class W4a16Request:
    """D = X @ W^T for given X, packed W and grouping, and any D of one shape and strides."""

    def __init__(
        self,
        operation: str,
        x: torch.Tensor,
        weight: PackedNvfp4Weight,
        out: torch.Tensor | None,
        grouping: Grouping | None = None,
    ) -> None:
        """Check a call and choose its kernel. out: like that of every run, None if the runs allocate it."""
        if not isinstance(weight, PackedNvfp4Weight):
            raise ArgumentError(
                f"weight is a {type(weight).__name__}; it must be a PackedNvfp4Weight, as nvfp4_weight.pack() makes it"
            )
        given = {"x": x, "weight": weight.data}
        if out is not None:
            given["out"] = out
        if grouping is not None:
            given["layout"] = grouping.layout
        self._device = require_one_device(given)
        self._kind = grouping.kind if grouping else "dense"
        self._shape = _result_shape(x, weight, self._kind)
        self._dtype, self._k, self._experts = x.dtype, weight.k, weight.experts or 1
        if grouping is not None:
            grouping.require(self._shape[0], self._experts)
        if out is not None:
            self._require_output(out)
        self._plan = None
        if self._shape.numel() == 0:
            return
        self._inputs = {
            "x": tiled_matrices(x, "x"),
            "weight": _units(weight),
            "global_scale": flat(weight.global_scale, "global_scale"),
        }
        if grouping is not None:
            self._inputs["layout"] = flat(grouping.layout, "layout")
        m = self._shape[-2]
        if grouping is not None and grouping.kind == "masked":
            m = min(grouping.expected_m, m)
        problem = W4a16Problem(
            m,
            weight.n,
            weight.k,
            X_DTYPES[x.dtype],
            self._kind,
            self._experts,
            grouping.alignment if grouping else 1,
        )
        self._plan = Plan(operation, problem, self._device)

    def run(self, out: torch.Tensor | None) -> torch.Tensor:
        """Launch on the current stream, into `out` or a new tensor; return it."""
        if out is None:
            out = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        if self._plan is not None:
            self._plan.launch(out, self._call)
        return out

    def _require_output(self, out: torch.Tensor) -> None:
        if out.dtype != self._dtype or out.shape != self._shape:
            dtype = str(self._dtype).removeprefix("torch.")
            raise ArgumentError(f"out is {describe(out)}; this call takes {dtype} {list(self._shape)}")
        if out.shape[-1] > 1 and out.stride(-1) != 1:
            raise ArgumentError(
                f"out is {describe(out)}: its last dimension must be contiguous. Give another out"
            )
        for dim, least in ((-2, self._shape[-1]), (-3, self._shape[-1])):
            if out.dim() >= -dim and out.shape[dim] > 1 and out.stride(dim) < least:
                raise ArgumentError(f"out is {describe(out)}: its rows overlap. Give another out")

    def _call(self, out: torch.Tensor) -> Call:
        size, (*lead, m, n) = out.element_size(), out.shape
        row = out.stride(-2) if m > 1 else n
        matrix = out.stride(0) if lead and lead[0] > 1 else row * m
        strides = (row * size, matrix * size)
        result = Tiled(out.data_ptr(), n * size, (m, *lead), strides[: 1 + len(lead)])
        for name, tensor in self._inputs.items():
            if tensor.overlaps(result):
                raise ArgumentError(
                    f"out shares memory with {name} ({result} and {tensor}). Give another out"
                )
        # The kernel stores 16 bytes at once where every row of D starts at a multiple of them.
        aligned = all(value % 16 == 0 for value in (result.address, *result.strides))
        arguments: dict[str, Argument] = {
            **self._operands(),
            "d": result.address,
            "global_scale": self._inputs["global_scale"].address,
            "m": m,
            "n": n,
            "k": self._k,
            "ldd": row,
            "aligned": int(aligned),
            "layout": self._inputs["layout"].address if "layout" in self._inputs else 0,
            "experts": self._experts,
            "matrix_stride": matrix,
        }
        return Call(arguments, {**self._inputs, "out": result})

    def _operands(self) -> dict[str, Argument]:
        """Return X and W as the chosen kernel reads them: through tensor maps, or by their addresses with cp.async."""
        x, w = self._inputs["x"], self._inputs["weight"]
        assert self._plan is not None
        if self._plan.record.config["copy"] == "tma":
            return {"map_x": x, "map_w": w}
        row, *matrix = (stride // self._dtype.itemsize for stride in x.strides)
        return {"x": x.address, "w": w.address, "ldx": row, "x_matrix_stride": matrix[0] if matrix else 0}


def _result_shape(x: torch.Tensor, weight: PackedNvfp4Weight, kind: str) -> torch.Size:
    """Return D's shape. Refuse an X and a weight that do not fit."""
    if (weight.experts is None) != (kind == "dense"):
        holds = "one matrix" if weight.experts is None else f"{weight.experts} experts"
        takes = "one matrix" if kind == "dense" else "experts"
        raise ArgumentError(f"weight holds {holds} ({describe(weight.data)}); this operation takes {takes}")
    wanted = [weight.experts, "M", weight.k] if kind == "masked" else ["M", weight.k]
    fits = x.dim() == len(wanted) and all(w in ("M", e) for w, e in zip(wanted, x.shape, strict=True))
    if x.dtype not in X_DTYPES or not fits:
        shape = ", ".join(map(str, wanted))
        raise ArgumentError(
            f"x is {describe(x)}; a weight of {list(weight.shape)} takes bfloat16 or float16 [{shape}]"
        )
    return torch.Size((*x.shape[:-1], weight.n))


def _units(weight: PackedNvfp4Weight) -> Tiled:
    """Return packed weights as a tensor map sees them: units along K, along N, and experts."""
    packed = flat(weight.data, "weight")
    require_aligned(packed, "weight", TMA_ALIGNMENT)
    *experts, blocks, units, nbytes = weight.data.shape
    outer, strides = (units, blocks, *experts), (nbytes, units * nbytes, blocks * units * nbytes)
    assert nbytes == w4a16_layout.UNIT_BYTES
    return Tiled(packed.address, nbytes, outer, strides[: len(outer)])
