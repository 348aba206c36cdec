"""A call of a scaled GEMM, from its operands to a launch."""

from __future__ import annotations

import torch

from cute_kernels.heuristics import Candidate, GemmProblem, candidates, explain

from . import context
from .arguments import Argument, Tiled, pack
from .backend import Launcher, Region
from .cache import BoundedCache
from .errors import ArgumentError, KernelNotFoundError
from .gemm_operands import (
    Scaled,
    d_dtype,
    kind,
    operand,
    require_k_major,
    require_output,
    tiled_scales,
)
from .manifest import KernelRecord
from .tensors import TMA_ALIGNMENT, require_one_device, require_rows, round_up, tiled

_NAMES = {
    "map_a": "a",
    "map_b": "b",
    "map_sfa": "a's scale factors",
    "map_sfb": "b's scale factors",
    "map_c": "c",
    "map_d": "d",
}
_LAUNCHES_KEPT = 64  # of one request: one for each address of D and stream


class GemmRequest:
    """D = A @ B^T (+ C) for given A, B and C, and any D of one dtype, shape and stride.

    Everything that can be refused is refused when it is made, but for what depends on D's address. It holds
    addresses, not tensors, so it keeps no memory alive, and serves again when the same memory holds other
    values.
    """

    def __init__(
        self, a: Scaled, b: Scaled, c: torch.Tensor | None, d: torch.Tensor | None, dtype: torch.dtype
    ) -> None:
        """Check a call and choose its kernel. d: like the D of every run, None if the runs allocate it."""
        left, right = operand("a", a), operand("b", b)
        operands = kind(left, right)
        self.m, self.n, self.k = left.mn, right.mn, left.k
        self._dtype = dtype
        inputs = [*left.tensors(), *right.tensors()]
        outputs = [(name, t) for name, t in (("c", c), ("d", d)) if t is not None]
        self._device = require_one_device(dict(inputs + outputs))
        d_type = d_dtype(dtype)
        for name, tensor in outputs:
            require_output(name, tensor, self.m, self.n, dtype)
        self.trivial = 0 in (self.m, self.n, self.k)
        if self.trivial:
            return

        for given in (left, right):
            require_k_major(given)
        for name, tensor in outputs:
            require_rows(tensor, name)
        self._tensors = {
            "map_a": tiled(left.elements),
            "map_b": tiled(right.elements),
            "map_sfa": tiled_scales(left),
            "map_sfb": tiled_scales(right),
        }
        if c is not None:
            self._tensors["map_c"] = tiled(c)
        self._backend = context.backend_for(self._device)
        self._library = context.library()
        problem = GemmProblem(self.m, self.n, self.k, operands, d_type, accumulate=c is not None)
        self.record, self.choice = self._choose(problem)
        self._handle = self._backend.load(self._library, self.record)
        self._launches: BoundedCache[Launcher] = BoundedCache(_LAUNCHES_KEPT)

    def run(self, d: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
        """Launch on the current stream, into `d` or a new tensor; return it."""
        if d is None:
            d = self._allocate()
        if self.trivial:
            return self._fill(d, c)
        stream = self._backend.stream()
        key = (d.data_ptr(), stream)
        launch = self._launches.get(key)
        if launch is None:
            launch = self._launches.add(key, self._bind(tiled(d), stream))
        launch()
        return d

    def _allocate(self) -> torch.Tensor:
        """Return a new D, its rows padded to what TMA takes."""
        columns = round_up(self.n, TMA_ALIGNMENT // self._dtype.itemsize)
        return torch.empty_strided((self.m, self.n), (columns, 1), dtype=self._dtype, device=self._device)

    def _fill(self, d: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """Write the sum of no products."""
        return d.zero_() if c is None else d.copy_(c)

    def _choose(self, problem: GemmProblem) -> tuple[KernelRecord, Candidate]:
        archs = self._backend.archs
        records = {r.name: r for r in self._library.find(problem.kernel, archs)}
        if not records:
            held = ", ".join(self._library.archs(problem.kernel)) or "no architecture"
            raise KernelNotFoundError(
                f"gemm_nt has no kernel for {archs[0]} in {self._library.folder}, which has it for {held}. "
                "Run it "
                "on such a GPU, or build the folder with an architecture that has this kernel"
            )
        configs = {name: r.config for name, r in records.items()}
        best = candidates(problem, self._backend.num_sms, configs)[0]
        if best.estimate is None:
            raise KernelNotFoundError(
                f"no kernel in {self._library.folder} serves this problem; build its other variants.\n"
                + explain(problem, self._backend.num_sms, configs)
            )
        return records[best.name], best

    def _bind(self, d: Tiled, stream: int) -> Launcher:
        if d.address % TMA_ALIGNMENT:
            raise ArgumentError(
                f"d starts at address {d.address:#x}, and TMA takes multiples of {TMA_ALIGNMENT} bytes only"
            )
        for name, tensor in self._tensors.items():
            if tensor.overlaps(d) and not (name == "map_c" and tensor == d):
                raise ArgumentError(
                    f"d shares memory with {_NAMES[name]} ({tensor} and {d}). Only c may be d, and then as a "
                    "whole; give another d"
                )
        tensors = {**self._tensors, "map_d": d}
        arguments: dict[str, Argument] = {**tensors, "m": self.m, "n": self.n, "k": self.k}
        params = pack(self.record.params, arguments, self._backend.encode_tensor_map)
        memory = [Region(t.address, t.nbytes, _NAMES[name]) for name, t in tensors.items()]
        assert self.choice.estimate is not None
        return self._backend.bind(self._handle, self.choice.estimate.grid, params, memory, stream)
