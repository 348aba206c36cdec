"""A call of a GEMM, from its operands to a launch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from cute_kernels.heuristics import GemmProblem

from . import context
from .arguments import Tiled
from .errors import ArgumentError
from .gemm_operands import (
    Given,
    Operand,
    d_dtype,
    kind,
    operand,
    require_lines,
    require_output,
    tiled_scales,
)
from .plan import Ahead, Call, Plan
from .tensors import (
    TMA_ALIGNMENT,
    begin_with,
    require_number,
    require_one_device,
    require_rows,
    round_up,
    tiled,
)

PARAMETERS = {
    "a": "map_a",
    "b": "map_b",
    "a's scale factors": "map_sfa",
    "b's scale factors": "map_sfb",
    "a's global scale": "global_a",
    "b's global scale": "global_b",
    "d's global scale": "global_d",
    "c": "map_c",
    "d": "map_d",
}
_OTHER = {"a": "b", "b": "a"}
# Of a kernel whose operands are swapped: what it takes for its A is the call's B.
SWAPPED = {_OTHER.get(name[0], name[0]) + name[1:]: parameter for name, parameter in PARAMETERS.items()}
CLC_OPERANDS = ("mxf4", "bf16")


def inputs_and_factors(left: Operand, right: Operand) -> tuple[dict[str, Tiled], dict[str, Tiled]]:
    """Return what a launch reads by tensor maps, and by pointers: operands with their scales, and global scales.

    Raises ArgumentError for what TMA cannot take.
    """
    for given, other in ((left, right), (right, left)):
        require_lines(given, unpacked=given.format.packed > other.format.packed)
    inputs = {"a": tiled(left.lines), "b": tiled(right.lines)}
    inputs |= {
        f"{given.name}'s scale factors": tiled_scales(given, given.scales)
        for given in (left, right)
        if given.scales is not None
    }
    factors = {
        f"{given.name}'s global scale": Tiled(given.global_scale.data_ptr(), 4)
        for given in (left, right)
        if given.global_scale is not None
    }
    return inputs, factors


class GemmRequest:
    """D = A @ B^T (+ C) for given A, B and C, and any D of one dtype, shape and stride.

    Everything that can be refused is refused when it is made, but for what depends on D's address. It holds
    addresses, not tensors, so it keeps no memory alive, and serves again when the same memory holds other
    values.
    """

    def __init__(
        self,
        a: Given,
        b: Given,
        c: torch.Tensor | None,
        d: torch.Tensor | None,
        dtype: torch.dtype,
        granularities: tuple[int | None, int | None] = (None, None),
        scheduling: str = "static",
        busy_sms: int = 0,
    ) -> None:
        """Check a call and choose its kernel.

        d: like the D of every run, None if the runs allocate it. granularities: elements of K that share a scale
        factor of A, and of B, where the call says so. scheduling: "static", "clc" or "auto".
        busy_sms: multiprocessors that other kernels hold.
        """
        left, right = operand("a", a, granularities[0]), operand("b", b, granularities[1])
        operands, d_type = kind(left, right), d_dtype(dtype)
        self._m, self._n, self._k = left.mn, right.mn, left.k
        self._dtype = dtype
        inputs = [*left.tensors(), *right.tensors()]
        outputs = [(name, t) for name, t in (("c", c), ("d", d)) if t is not None]
        self._device = require_one_device(dict(inputs + outputs))
        for name, tensor in outputs:
            require_output(name, tensor, self._m, self._n, dtype)
        problem = GemmProblem(
            *(self._m, self._n, self._k, operands, d_type),
            accumulate=c is not None,
            a_major=left.major,
            b_major=right.major,
            scheduling=scheduling,
            busy_sms=busy_sms,
        )
        _require_scheduling(problem)
        self._plan = None
        if 0 in (self._m, self._n, self._k):
            return
        num_sms = context.backend_for(self._device).num_sms
        if busy_sms >= num_sms:
            raise ArgumentError(f"busy_sms is {busy_sms}, and the device has {num_sms}; leave some of them")

        self._inputs, self._factors = inputs_and_factors(left, right)
        for name, tensor in outputs:
            require_rows(tensor, name)
        if c is not None:
            self._inputs["c"] = tiled(c)
        self._plan = Plan("gemm_nt", problem, self._device)

    def run(
        self, d: torch.Tensor | None, c: torch.Tensor | None, packing: Ahead | None = None
    ) -> torch.Tensor:
        """Launch on the current stream, into `d` or a new tensor; return it. packing: what goes ahead of it."""
        if self._plan is None:
            return begin_with(self._allocate() if d is None else d, c)
        if d is not None:
            self._require_apart(d)
        out = self._allocate() if d is None or self._ragged else d
        begin = partial(begin_with, out, c) if c is not None and not self._loads_c else None
        self._plan.launch(out, self._call, ahead=(packing, begin))
        return out if d is None or out is d else d.copy_(out)

    @property
    def _loads_c(self) -> bool:
        """Whether the kernel loads C. FP32 products are added to a D that holds it."""
        return self._dtype != torch.float32

    @property
    def _ragged(self) -> bool:
        """Whether rows of D end inside 16 bytes: TMA writes them whole, and what follows D is not ours."""
        return self._n * self._dtype.itemsize % TMA_ALIGNMENT != 0

    def _allocate(self) -> torch.Tensor:
        """Return a new D, its rows padded to whole 16 bytes."""
        columns = round_up(self._n, TMA_ALIGNMENT // self._dtype.itemsize)
        return torch.empty((self._m, columns), dtype=self._dtype, device=self._device)[:, : self._n]

    def _require_apart(self, d: torch.Tensor) -> Tiled:
        """Return D as a tensor map sees it. Refuse one that TMA cannot take or that lies over an input."""
        require_rows(d, "d")
        result = tiled(d)
        for name, tensor in {**self._inputs, **self._factors}.items():
            if tensor.overlaps(result) and not (name == "c" and tensor == result):
                raise ArgumentError(
                    f"d shares memory with {name} ({tensor} and {result}). Only c may be d, and then as a "
                    "whole; give another d"
                )
        return result

    def _call(self, d: torch.Tensor) -> Call:
        assert self._plan is not None
        swapped = self._plan.record.config["swap_ab"]
        names, m, n = (SWAPPED, self._n, self._m) if swapped else (PARAMETERS, self._m, self._n)
        result = self._require_apart(d)
        inputs = {name: tensor for name, tensor in self._inputs.items() if name != "c" or self._loads_c}
        maps = {names[name]: tensor for name, tensor in {**inputs, "d": result}.items()}
        written = replace(result, row_bytes=round_up(result.row_bytes, TMA_ALIGNMENT))
        numbers = {names[name]: factor.address for name, factor in self._factors.items()}
        numbers |= {"m": m, "n": n, "k": self._k}
        return Call({**maps, **numbers}, {**inputs, **self._factors, "d": written})


def _require_scheduling(problem: GemmProblem) -> None:
    """Refuse an order of tiles that no kernel has."""
    supported = {"static": True, "clc": problem.operands in CLC_OPERANDS and problem.layout == "nt"}
    supported["clc"] &= not problem.accumulate
    supported["auto"] = True
    require_number("busy_sms", problem.busy_sms)
    if problem.busy_sms < 0:
        raise ArgumentError(
            f"busy_sms is {problem.busy_sms}; it is a number of multiprocessors, 0 by default"
        )
    if not supported.get(problem.scheduling, False):
        raise ArgumentError(
            f"scheduling is {problem.scheduling!r} for {problem}; it is 'static', 'auto', or 'clc' for MXFP4 x MXFP4 "
            "and BF16, both K-major, without c. Leave it out"
        )
