"""Kernels that need no more than SM80 has (no TMA, no tensor memory), compiled for every architecture."""

from __future__ import annotations

from cute_kernels.build.variant import Variant


def variants(arch: str) -> list[Variant]:
    """The variants that the build compiles for `arch`."""
    from sm80 import nvfp4_dequantize

    return [variant for variant in nvfp4_dequantize.variants() if arch in variant.archs]
