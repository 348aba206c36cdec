"""One good kernel among kernels that the build must refuse, each for another reason."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import Any

from tiny_kernels import scale_variant
from tiny_kernels.shape import Shape

from cute_kernels.build.variant import Param, Variant

ARCH = "sm_90a"


def variants(arch: str) -> list[Variant]:
    """Named for what is wrong with them."""
    if arch != ARCH:
        return []
    good, spilling = (replace(scale_variant(Shape(1, held=held)), kernel="bad") for held in (0, 300))
    return [
        replace(good, name="good"),
        replace(spilling, name="spills"),
        replace(spilling, name="spills_and_says_why", allow_spills="it is what this test is about"),
        replace(good, name="raises", compile=raises),
        replace(good, name="dies", compile=dies),
        replace(good, name="changes_with_lines", compile=changes_with_lines),
        replace(good, name="hides_an_import", compile=hides_an_import),
        replace(good, name="misstates_params", params=good.params[:-1]),
        replace(good, name="misstates_sizes", params=(*good.params[:-1], Param("n", "i64"))),
        replace(good, name="misstates_block", block=(64, 1, 1)),
    ]


def raises(arch: str, options: str) -> Any:
    raise ValueError(f"no such thing on {arch}")


def dies(arch: str, options: str) -> Any:
    os._exit(3)


def changes_with_lines(arch: str, options: str) -> Any:
    return scale_variant(Shape(2 if "line" in options else 1)).compile(arch, options)


def hides_an_import(arch: str, options: str) -> Any:
    importlib.import_module("bad_kernels.hidden")
    return scale_variant(Shape(1)).compile(arch, options)
