"""Runs one of QuACK's kernels by its public function, against torch in float64 (`python -m tests.vendor --quack`).

`python -m tests.vendor.example tests/vendor/quack_kernels.py NAME`, with a checkout of QuACK in PYTHONPATH
and its dependencies installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import torch

os.environ["QUACK_CACHE_ENABLED"] = "0"


def _untuned(function: Callable[..., Any]) -> Callable[..., Any]:
    vars(function)["fn"] = function
    return function


if importlib.util.find_spec("triton") is None:  # its tuner of configurations times them with Triton
    tuner = MagicMock()
    tuner.autotune = lambda *_, **__: _untuned
    sys.modules["quack.autotuner"] = tuner

M, N = 8, 512


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float32).to(dtype)


def _close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
    print(f"relative error {float(error):.2e}")
    assert float(error) <= tolerance


def softmax() -> None:
    """Rows of one CTA, float32."""
    from quack.softmax import softmax_fwd

    x = _random(M, N)
    _close(softmax_fwd(x), torch.softmax(x.double(), -1), 1e-6)


def softmax_cluster() -> None:
    """Rows that a cluster of two CTAs shares, bfloat16."""
    from quack.softmax import softmax_fwd

    x = _random(2, 32768, dtype=torch.bfloat16)
    _close(softmax_fwd(x), torch.softmax(x.double(), -1), 2**-8)


def softmax_backward() -> None:
    from quack.softmax import softmax_bwd

    y, dy = torch.softmax(_random(M, N), -1), _random(M, N)
    d, e = dy.double(), y.double()
    _close(softmax_bwd(dy, y), e * (d - (d * e).sum(-1, keepdim=True)), 1e-5)


def rmsnorm() -> None:
    from quack.rmsnorm import rmsnorm_fwd

    x, weight = _random(M, N, dtype=torch.bfloat16), _random(N)
    out = rmsnorm_fwd(x, weight, eps=1e-6)[0]
    d = x.double()
    _close(out, d * (d.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double(), 2**-7)


def layernorm() -> None:
    from quack.rmsnorm import layernorm_fwd

    x, weight = _random(M, N, dtype=torch.bfloat16), _random(N)
    expected = torch.nn.functional.layer_norm(x.double(), (N,), weight.double(), eps=1e-6)
    _close(layernorm_fwd(x, weight, eps=1e-6), expected, 2**-7)


def cross_entropy() -> None:
    from quack.cross_entropy import cross_entropy_fwd

    x, target = _random(M, N), torch.randint(N, (M,))
    loss = cross_entropy_fwd(x, target)
    loss = loss[0] if isinstance(loss, tuple) else loss
    _close(loss, torch.nn.functional.cross_entropy(x.double(), target, reduction="none"), 1e-6)


def topk() -> None:
    from quack.topk import topk_fwd

    x = _random(32, N)
    values, indices = topk_fwd(x, 8)
    expected = torch.topk(x, 8)
    _close(values, expected.values, 1e-4)  # the kernel keeps an index in the low bits of each value
    assert (indices.long() == expected.indices).all()


def gemm() -> None:
    from quack.gemm_interface import gemm as multiply

    a, b = _random(256, 128, dtype=torch.bfloat16), _random(256, 128, dtype=torch.bfloat16)
    _close(multiply(a, b.T, tuned=False), a.double() @ b.T.double(), 2**-8)


def gemm_gated() -> None:
    from quack.gemm_interface import gemm_gated as multiply

    a, b = _random(256, 128, dtype=torch.bfloat16), _random(256, 128, dtype=torch.bfloat16)
    _, out = multiply(a, b.T, activation="swiglu", tuned=False)
    product = a.double() @ b.T.double()
    gate, up = product[:, ::2], product[:, 1::2]
    _close(out, torch.nn.functional.silu(gate) * up, 2**-7)


KERNELS: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (
        softmax,
        softmax_cluster,
        softmax_backward,
        rmsnorm,
        layernorm,
        cross_entropy,
        topk,
        gemm,
        gemm_gated,
    )
}

if __name__ == "__main__":
    torch.manual_seed(0)
    KERNELS[sys.argv[1]]()
