"""Calls of gemm_nt that would be fine, for tests that spoil one thing and expect a refusal."""

from __future__ import annotations

import pytest
import torch

from cute_kernels import ops
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import pack

M, N, K = 128, 96, 288
WORDS = 3  # scale words along K
POISON = 77.0


def operand(mn, k=K):
    scales = torch.full((mn, -(-k // 32)), 127, dtype=torch.uint8)
    return torch.zeros(mn, k // 2, dtype=torch.uint8), pack(scales)


def fresh_d(m=M, n=N, dtype=torch.float32):
    return torch.full((m, n), POISON, dtype=dtype)


class Call:
    """A call that would be fine; tests spoil one thing."""

    def __init__(self):
        self.a, self.b = operand(M), operand(N)
        self.d = fresh_d()
        self.c = None
        self.options = {}

    def __call__(self):
        return ops.gemm_nt(self.a, self.b, self.d, self.c, **self.options)


def refused(call, device, message, error=ArgumentError):
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
