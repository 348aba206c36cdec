"""Calls of gemm_nt that would be fine, for tests that spoil one thing and expect a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import ops
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice

M, N, K = 128, 96, 288
WORDS = 3  # scale words along K
POISON = 77.0


def operand(mn: int, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.full((mn, -(-k // 32)), 127, dtype=torch.uint8)
    return torch.zeros(mn, k // 2, dtype=torch.uint8), pack(scales)


def fresh_d(m: int = M, n: int = N, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((m, n), POISON, dtype=dtype)


class Call:
    """A call that would be fine; tests spoil one thing, with what may be of a wrong type."""

    def __init__(self) -> None:
        self.a: Any = operand(M)
        self.b: Any = operand(N)
        self.d: Any = fresh_d()
        self.c: Any = None
        self.options: dict[str, Any] = {}

    def __call__(self) -> torch.Tensor:
        return ops.gemm_nt(self.a, self.b, self.d, self.c, **self.options)


def refused(call: Call, device: FakeDevice, message: str, error: type[Exception] = ArgumentError) -> None:
    """Check that a call is refused with a message, twice, and that it leaves no trace."""
    tensors = [
        t
        for t in (*call.a, *call.b, call.d, call.c)
        if isinstance(t, torch.Tensor) and t.device.type == "cpu"
    ]
    before = [t.clone() for t in tensors]
    for _ in range(2):  # a refusal must not be remembered as something else
        with pytest.raises(error, match=message):
            call()
    assert not device.launches
    assert not device.seen
    for tensor, kept in zip(tensors, before, strict=True):
        assert torch.equal(tensor, kept)
