"""Run time: finds a compiled kernel, builds the bytes of its launch, and launches it on a GPU or on the
emulator.

Neither the DSL nor a kernel package is imported; cuda-python only when a CUDA tensor is used.
"""

from .arguments import Tiled, pack
from .backend import Backend, Launcher, Region
from .cache import BoundedCache
from .context import backend_for, emulate, library, set_cubins
from .errors import ArgumentError, DriverError, KernelNotFoundError, ManifestError
from .manifest import KernelRecord, Library

__all__ = [
    "ArgumentError",
    "Backend",
    "BoundedCache",
    "DriverError",
    "KernelNotFoundError",
    "KernelRecord",
    "Launcher",
    "Library",
    "ManifestError",
    "Region",
    "Tiled",
    "backend_for",
    "emulate",
    "library",
    "pack",
    "set_cubins",
]
