"""Runs bodies of kernels whose CTAs work together through memory that begins as zeros."""

from __future__ import annotations

from typing import Any

import numpy as np

from cute_kernels.emulator import EmulationError
from tests.instructions.kernels import run

SETUP = """
    mov.u32 %r2, %ctaid.x;
    setp.eq.u32 %p0, %r2, 0;           // the producer's CTA
    setp.ne.u32 %p1, %r0, 0;           // not the thread that speaks for its CTA
"""


def kind_of(body: str, schedule: str = "random", seed: int = 0, **launch: Any) -> str:
    """The kind of the fault that a body raises, or ""; `out` is cleared, which a kernel's workspace would be."""
    try:
        clean(SETUP + body, schedule=schedule, seed=seed, **launch)
    except EmulationError as fault:
        return fault.kind
    return ""


def clean(body: str, schedule: str = "random", seed: int = 0, **launch: Any) -> np.ndarray:
    """Runs a body with `in` all zeros as its workspace."""
    source = np.zeros(1024, np.uint32)
    return run(
        body.replace("%d0", "%d1").replace("%d3", "%d4"), source, schedule=schedule, seed=seed, **launch
    )[0]
