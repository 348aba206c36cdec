"""The kernel for a problem, ready to launch into one output after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cute_kernels.heuristics import Candidate, Problem, candidates, explain

from . import context
from .arguments import Argument, Tiled, pack
from .backend import Launcher, Region
from .cache import BoundedCache
from .errors import KernelNotFoundError
from .manifest import KernelRecord

_LAUNCHES_KEPT = 64  # of one plan: one for each address of the output and stream

Ahead = Callable[[], object]
"""What runs on the current stream ahead of a launch, such as the packing of the scale factors that it reads."""


@dataclass(frozen=True)
class Call:
    """Launch arguments by the kernel's names, and the tensors among them by the caller's, which the kernel
    may touch.
    """

    arguments: Mapping[str, Argument]
    tensors: Mapping[str, Tiled]


class Plan:
    """A kernel that was chosen for a problem and loaded, with the launches that it has had.

    Raises KernelNotFoundError if the cubins in use hold none for the device, ManifestError if they are
    damaged.
    """

    def __init__(self, operation: str, problem: Problem, device: torch.device) -> None:
        self._backend = context.backend_for(device)
        self._library = context.library()
        self.record, self.candidate = self._choose(operation, problem)
        self._handle = self._backend.load(self._library, self.record)
        self._launches: BoundedCache[Launcher] = BoundedCache(_LAUNCHES_KEPT)

    def launch(
        self,
        out: torch.Tensor,
        call: Callable[..., Call],
        *more: torch.Tensor,
        ahead: Sequence[Ahead | None] = (),
    ) -> None:
        """Launch into `out`, and `more` outputs, on the current stream; see `launcher`.

        ahead: what runs there before, if anything, one after another. Whatever refuses the call does so before that.
        """
        launcher = self.launcher(out, call, *more)
        for step in ahead:
            if step is not None:
                step()
        launcher()

    def launcher(self, out: torch.Tensor, call: Callable[..., Call], *more: torch.Tensor) -> Launcher:
        """Return what launches into `out`, and `more` outputs, on the current stream.

        call: what the launch into outputs is; asked at the first one for their addresses only, so these must be all
        that can change it.
        """
        stream = self._backend.stream()
        key = (out.data_ptr(), *(tensor.data_ptr() for tensor in more), stream)
        launcher = self._launches.get(key)
        if launcher is None:
            launcher = self._launches.add(key, self._bind(call(out, *more), stream))
        return launcher

    def _choose(self, operation: str, problem: Problem) -> tuple[KernelRecord, Candidate]:
        archs, folder = self._backend.archs, self._library.folder
        records = {r.name: r for r in self._library.find(problem.kernel, archs)}
        if not records:
            held = ", ".join(self._library.archs(problem.kernel)) or "no architecture"
            raise KernelNotFoundError(
                f"{operation} has no kernel for {archs[0]} in {folder}, which has it for {held}. Run it on "
                "such a GPU, "
                "or build the folder with an architecture that has this kernel"
            )
        configs = {name: r.config for name, r in records.items()}
        best = candidates(problem, self._backend.num_sms, configs)[0]
        if best.estimate is None:
            raise KernelNotFoundError(
                f"no kernel in {folder} serves this call of {operation}; build the others.\n"
                + explain(problem, self._backend.num_sms, configs)
            )
        return records[best.name], best

    def _bind(self, call: Call, stream: int) -> Launcher:
        estimate = self.candidate.estimate
        assert estimate is not None
        memory = [Region(tensor.address, tensor.nbytes, name) for name, tensor in call.tensors.items()]
        arguments = {**call.arguments, **estimate.arguments}
        workspace = self._workspace(estimate.grid[0], stream)
        memory += workspace
        arguments |= {region.name: region.address for region in workspace}
        params = pack(self.record.params, arguments, self._backend.encode_tensor_map)
        return self._backend.bind(self._handle, estimate.grid, params, memory, stream)

    def _workspace(self, ctas: int, stream: int) -> list[Region]:
        """Return what a kernel's CTAs need: "slots" and "flags" (Int32) where they share tiles, "map_slots" where they
        make tensor maps.
        """
        config = self.record.config
        sizes = {"flags": 4 * config.get("flags", 0), "slots": config.get("slot_bytes", 0)}
        sizes["map_slots"] = config.get("map_slot_bytes", 0)
        return [self._backend.workspace(name, stream, size * ctas) for name, size in sizes.items() if size]
