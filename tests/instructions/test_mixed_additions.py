"""add.rn.f32.bf16 (sm_100): torch's arithmetic, and a chain of forms that are compared with an H200.

The rule of the PTX ISA itself, bit by bit, is in test_alu_float.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tests import coverage
from tests.instructions import alu_harness
from tests.instructions.exact_numbers import BF16, F32, samples


def operands() -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """A BF16 and a float32: of all kinds, and near each other's negatives, whose sums lose bits or cancel."""
    random = np.random.default_rng(3)
    narrow = random.choice(np.array(samples(BF16), np.uint16), 4096)
    wide = random.choice(np.array(samples(F32), np.uint32), 4096)
    near = (narrow[:1024].astype(np.uint32) << 16) ^ (1 << 31)
    wide[:1024] = near + random.integers(-4, 5, 1024).astype(np.uint32)
    return narrow, wide


def computed(body: str) -> NDArray[np.uint32]:
    narrow, wide = operands()
    return alu_harness.run(body, {"%h2": narrow, "%r3": wide})["%r1"].astype(np.uint32)


def test_torch_agrees() -> None:
    narrow, wide = operands()
    found = computed("add.rn.f32.bf16 %r1, %h2, %r3;")
    c = torch.from_numpy(narrow.view(np.int16)).view(torch.bfloat16).float()
    expected = (c + torch.from_numpy(wide.view(np.float32))).numpy()
    nan = np.isnan(expected)
    assert 0 < nan.sum() < nan.size and (found[nan] == 0x7FFFFFFF).all()
    assert (found[~nan] == expected[~nan].view(np.uint32)).all()


def test_a_chain_of_recorded_forms_agrees() -> None:
    assert {coverage.canonical(form) for form in ("cvt.f32.bf16", "add.rn.f32")} <= coverage.recorded().keys()
    chain = "cvt.f32.bf16 %r5, %h2;\nadd.rn.f32 %r1, %r5, %r3;"
    assert (computed("add.rn.f32.bf16 %r1, %h2, %r3;") == computed(chain)).all()
