"""Kernels for SM120 (block-scaled mma.sync, no tensor memory). None yet."""

from __future__ import annotations

from cute_kernels.build.variant import Variant


def variants(arch: str) -> list[Variant]:
    """The variants that the build compiles for `arch`."""
    del arch
    return []
