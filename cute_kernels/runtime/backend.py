"""The seam between operations and whatever runs their kernels: a GPU or the emulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from cute_kernels.build.variant import TensorMapSpec

from .arguments import Tiled
from .manifest import KernelRecord, Library

Launcher = Callable[[], None]
"""Launches one kernel with arguments fixed in advance; safe to call from several threads."""


class Region(NamedTuple):
    """Memory that a launch may touch. The emulator reports any access outside; a GPU ignores it."""

    address: int
    nbytes: int
    name: str


class Backend(Protocol):
    """What runs kernels."""

    @property
    def archs(self) -> tuple[str, ...]:
        """Architectures whose cubins it runs, the best first."""

    @property
    def num_sms(self) -> int:
        """Streaming multiprocessors: how many persistent CTAs of one a multiprocessor run side by side."""

    def stream(self) -> int:
        """Return the handle of torch's current stream on its device."""

    def load(self, library: Library, record: KernelRecord) -> Any:
        """Return a handle of a kernel, its file checked and loaded at the first call only."""

    def encode_tensor_map(self, spec: TensorMapSpec, tensor: Tiled) -> bytes:
        """Return the 128 bytes of a TMA descriptor."""

    def workspace(self, name: str, stream: int, nbytes: int) -> Region:
        """Return memory of at least `nbytes` that launches on `stream` share under a name, 256-byte aligned.

        It starts out as zeros, and belongs to the stream for good: launches on one stream use it in turns.
        """

    def bind(
        self,
        handle: Any,
        grid: tuple[int, int, int],
        params: Sequence[bytes],
        memory: Sequence[Region],
        stream: int,
    ) -> Launcher:
        """Return a launcher of a loaded kernel with these parameter bytes on this stream."""
