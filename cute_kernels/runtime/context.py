"""Which cubins and which backend a call uses."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .backend import Backend
from .emulated import EmulatorBackend
from .errors import ArgumentError, ManifestError
from .gpu import GpuBackend
from .manifest import BUILD_HINT, MANIFEST, Library

if TYPE_CHECKING:
    import torch

CUBINS_VARIABLE = "CUTE_KERNELS_CUBINS"
ARCH_VARIABLE = "CUTE_KERNELS_ARCH"


class _Settings:
    """What this process uses."""

    library: Library | None = None
    emulation: EmulatorBackend | None = None  # None: as the environment says


_settings = _Settings()
_lock = threading.Lock()
_gpus: dict[int, GpuBackend] = {}
_from_environment: dict[str, EmulatorBackend] = {}


def set_cubins(folder: str | Path | None) -> None:
    """Use the cubins of a folder from now on, in the whole process; None goes back to the default (see
    `library`).

    Raises ManifestError if it is not a cubin folder; what was in use before then stays in use.
    """
    _settings.library = None if folder is None else Library(folder)


def library() -> Library:
    """Return the cubins in use: of `set_cubins`, else of the environment's CUTE_KERNELS_CUBINS, else of the
    folder `build` beside the package, where a source checkout has it.

    The choice is made once, at the first call; the current directory plays no part in it.
    """
    held = _settings.library
    if held is None:
        with _lock:
            held = _settings.library = _settings.library or _default_library()
    return held


def token(device: torch.device) -> object:
    """Return a value that changes when `library()` or `backend_for(device)` may give something else, for the
    keys
    of caches. It raises nothing."""
    if device.type == "cuda":
        return _settings.library
    return _settings.library, _settings.emulation or os.environ.get(ARCH_VARIABLE)


def _default_library() -> Library:
    named = os.environ.get(CUBINS_VARIABLE)
    if named:
        return Library(named)
    beside = Path(__file__).resolve().parents[2] / "build"
    if not (beside / MANIFEST).exists():
        raise ManifestError(
            f"no cubins: {CUBINS_VARIABLE} is not set and {beside} holds no {MANIFEST}. Build them with "
            f"`{BUILD_HINT}` and set {CUBINS_VARIABLE}=DIR, or call cute_kernels.set_cubins(DIR)"
        )
    return Library(beside)


class emulate:  # noqa: N801 - used like a function, as torch.no_grad is
    """Run operations on CPU tensors on an emulated GPU from now on, in the whole process.

    arch: "sm_100a", "sm_90a", "sm_80", ...
    schedule: when asynchronous work (copies, tensor-core operations) completes: "eager" at once, "lazy" as
        late as the memory model allows, "random" in an order drawn from `seed`.
    num_sms: multiprocessors of the emulated device.

    As a context manager it restores at its end what was set before, and gives the backend, whose `reports`
    lists what the emulator reported for each launch:

        with cute_kernels.emulate("sm_100a", schedule="lazy") as emulation:
            d = cute_kernels.gemm_nt(a, b)
        print(emulation.reports[-1])
    """

    def __init__(self, arch: str, schedule: str = "random", seed: int = 0, num_sms: int = 8) -> None:
        self._backend = EmulatorBackend(arch, num_sms=num_sms, schedule=schedule, seed=seed)
        self._former = _settings.emulation
        _settings.emulation = self._backend

    def __enter__(self) -> EmulatorBackend:
        return self._backend

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _settings.emulation = self._former


def backend_for(device: torch.device) -> Backend:
    """Return what runs kernels on tensors of a device: its GPU, or the emulator for the CPU.

    Raises ArgumentError for other kinds of device, and for the CPU when no architecture to emulate is set.
    """
    if device.type == "cuda":
        return _gpus.get(device.index) or _gpu(device.index)
    if device.type != "cpu":
        raise ArgumentError(
            f"tensors on {device}: operations run on CUDA tensors, and on CPU tensors through the emulator. "
            "Move them"
        )
    if _settings.emulation is not None:
        return _settings.emulation
    arch = os.environ.get(ARCH_VARIABLE)
    if not arch:
        raise ArgumentError(
            "CPU tensors run on the emulator, and no architecture is set for it. Call "
            "cute_kernels.emulate('sm_100a') "
            f"or set {ARCH_VARIABLE}=sm_100a; or move the tensors to a CUDA device"
        )
    with _lock:
        if arch not in _from_environment:
            _from_environment[arch] = EmulatorBackend(arch)
        return _from_environment[arch]


def _gpu(index: int) -> GpuBackend:
    with _lock:
        if index not in _gpus:
            _gpus[index] = GpuBackend(index)
        return _gpus[index]
