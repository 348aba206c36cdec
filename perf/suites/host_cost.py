"""What a call costs the CPU until its launch is queued: operations as users call them, beside torch.mm.

Every call finds its kernel chosen and its launch bound, as all calls but the first do that give the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from cute_kernels import ops
from perf.ceilings import recorded
from perf.suite import Case, Selection
from perf.timing import Action

OURS = "w4a16_gemm_nt"
SHAPES = ("4096x4096",)
ROWS = (1, 16)


def cases(selection: Selection) -> Iterator[Case]:
    for shape in selection.shapes or SHAPES:
        n, k = (int(extent) for extent in shape.split("x"))
        for m in selection.m or ROWS:
            name = f"{shape} M={m}"
            if selection.only in name:
                calls = {} if selection.peers_only else ours(n, k, m)
                calls |= {} if selection.ours_only else torchs(n, k, m)
                contenders = {name: [action] for name, action in calls.items()}
                yield Case(name, OURS, contenders, check=str, moved_bytes=0, timer="host")


def ours(n: int, k: int, m: int) -> dict[str, Action]:
    """The product into a given output and into one of its own."""
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(0, 127, (n, k // 16), dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    weight = ops.nvfp4_repack(codes, scales, 0.01)
    x, out = activations(n, k, m)
    return {
        OURS: partial(ops.w4a16_gemm_nt, x, weight, out),
        f"{OURS}, allocating": partial(ops.w4a16_gemm_nt, x, weight),
    }


def torchs(n: int, k: int, m: int) -> dict[str, Action]:
    """torch.mm in BF16, likewise."""
    weight = torch.randn(n, k, device="cuda").to(torch.bfloat16)
    x, out = activations(n, k, m)
    return {
        "torch.mm": partial(torch.mm, x, weight.T, out=out),
        "torch.mm, allocating": partial(torch.mm, x, weight.T),
    }


def activations(n: int, k: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] and an output [M, N]."""
    x = torch.randn(m, k, device="cuda").to(torch.bfloat16)
    return x, torch.empty(m, n, dtype=torch.bfloat16, device="cuda")


def kernels() -> list[dict[str, Any]]:
    """What ran, as the manifest names it."""
    return recorded(["gemm_w4a16"])
