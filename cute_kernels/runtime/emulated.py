"""Kernels on the PTX emulator, on tensors in this process's memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cute_kernels.build.variant import TensorMapSpec

from .arguments import Tiled
from .backend import Launcher, Region
from .errors import ArgumentError
from .manifest import KernelRecord, Library

SCHEDULES = ("eager", "lazy", "random")

WORKSPACE_ALIGNMENT = 256  # bytes

_REPORTS_KEPT = 64


class Handle(NamedTuple):
    """A kernel as the emulator takes it."""

    record: KernelRecord
    ptx: str


class EmulatorBackend:
    """Runs kernels on an emulated device.

    arch: "sm_100a", ...; num_sms: CTAs of a persistent kernel that run side by side.
    schedule: "eager", "lazy" or "random", with `seed`: when asynchronous work completes.
    device: an emulator device with these properties; made at the first launch unless given.
    reports: what the emulator reported for the last launches, the newest last.
    """

    def __init__(
        self, arch: str, num_sms: int = 8, schedule: str = "random", seed: int = 0, device: Any = None
    ) -> None:
        if schedule not in SCHEDULES:
            raise ArgumentError(f"schedule is {schedule!r}; there are {', '.join(SCHEDULES)}")
        self.archs = (arch,)
        self.num_sms = num_sms
        self.schedule = schedule
        self.seed = seed
        self.reports: deque[Any] = deque(maxlen=_REPORTS_KEPT)
        self._given = device
        self._lock = threading.RLock()
        self._handles: dict[KernelRecord, Handle] = {}
        self._workspaces: dict[str, list[torch.Tensor]] = {}

    def stream(self) -> int:
        """Return 0: launches run at once, in order."""
        return 0

    def load(self, library: Library, record: KernelRecord) -> Handle:
        """Read a kernel's PTX at the first call, and check the cubin that it stands for.

        Raises ManifestError for a file that is missing or is not the manifest's.
        """
        with self._lock:
            if record not in self._handles:
                library.read_cubin(record)
                self._handles[record] = Handle(record, library.read_ptx(record))
            return self._handles[record]

    def encode_tensor_map(self, spec: TensorMapSpec, tensor: Tiled) -> bytes:
        """Return the descriptor that the driver would make."""
        return bytes(
            self._device().encode_tensor_map(
                dtype=spec.dtype,
                address=tensor.address,
                dims=tensor.dims(spec.dtype),
                strides=tensor.strides,
                box=spec.box,
                element_strides=spec.element_strides or (1,) * len(spec.box),
                swizzle=spec.swizzle,
                l2_promotion=spec.l2_promotion,
                oob_fill=spec.oob_fill,
            )
        )

    def workspace(self, name: str, stream: int, nbytes: int) -> Region:
        """Return zeroed memory; what was given out before stays valid."""
        with self._lock:
            held = self._workspaces.setdefault(name, [])
            if not held or held[-1].numel() < nbytes:
                memory = torch.zeros(nbytes + WORKSPACE_ALIGNMENT, dtype=torch.uint8)
                held.append(memory[-memory.data_ptr() % WORKSPACE_ALIGNMENT :][:nbytes])
            return Region(held[-1].data_ptr(), held[-1].numel(), name)

    def bind(
        self,
        handle: Handle,
        grid: tuple[int, int, int],
        params: Sequence[bytes],
        memory: Sequence[Region],
        stream: int,
    ) -> Launcher:
        """Return a launcher that lets the kernel touch `memory` and nothing else."""
        record, ptx = handle

        def launch() -> None:
            with self._lock:
                device = self._device()
                regions = _merged(memory)
                for region in regions:
                    device.register(region.address, region.nbytes, region.name)
                try:
                    report = device.launch(
                        ptx,
                        record.entry,
                        grid,
                        record.block,
                        record.cluster,
                        record.dynamic_shared,
                        list(params),
                        record.registers,
                    )
                finally:
                    for region in regions:
                        device.unregister(region.address)
                self.reports.append(report)

        return launch

    def _device(self) -> Any:
        with self._lock:
            if self._given is None:
                from cute_kernels.emulator import Device

                self._given = Device(
                    self.archs[0], num_sms=self.num_sms, schedule=self.schedule, seed=self.seed
                )
            return self._given


def _merged(memory: Sequence[Region]) -> list[Region]:
    """Return the regions in order of address, those that overlap or touch as one."""
    merged: list[Region] = []
    for region in sorted(r for r in memory if r.nbytes):
        last = merged[-1] if merged else None
        if last is None or region.address > last.address + last.nbytes:
            merged.append(region)
        else:
            end = max(last.address + last.nbytes, region.address + region.nbytes)
            merged[-1] = Region(last.address, end - last.address, f"{last.name}, {region.name}")
    return merged
