"""min and max of three .f32 (sm_100): torch's arithmetic, and chains of the forms with two, compared with an H200.

The rule of the PTX ISA itself ("max": .NaN, .abs, -0 below +0), bit by bit, is in test_alu_float.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import coverage
from tests.instructions import alu_harness
from tests.instructions.exact_numbers import F32, samples

NAN = 0x7FFFFFFF  # the canonical one of .f32


def operands() -> NDArray[np.uint32]:
    """Three rows of samples: zeros of both signs, subnormals, infinities and NaNs among them.

    Some columns are of NaNs alone, some of zeros and what .ftz makes zeros.
    The NaNs are quiet: of a signalling one and a number, C's fmin and so torch's gives NaN.
    """
    words = np.random.default_rng(11).choice(np.array(samples(F32), np.uint32), (3, 4096))
    words[:, :4] = 0x7FC00001
    words[:, 4:8] = [[0, 1 << 31, 1, 1 << 31], [1 << 31, 0, 1 << 31, 1 << 31], [0, 0, 0x80000001, 1 << 31]]
    return np.where(np.isnan(words.view(np.float32)), words | 1 << 22, words).astype(np.uint32)


def computed(body: str, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    values = {f"%r{2 + i}": row for i, row in enumerate(words)}
    return alu_harness.run(body, values)["%r1"].astype(np.uint32)


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("modifiers", ["", ".NaN", ".abs", ".NaN.abs", ".ftz.NaN.abs"])
def test_torch_agrees(name: str, modifiers: str) -> None:
    words = operands()
    found = computed(f"{name}{modifiers}.f32 %r1, %r2, %r3, %r4;", words)
    a, b, c = (torch.from_numpy(row.view(np.float32)) for row in words)
    if "ftz" in modifiers:
        a, b, c = (torch.where(x.abs() < 2.0**-126, torch.copysign(torch.zeros(()), x), x) for x in (a, b, c))
    if "abs" in modifiers:
        a, b, c = a.abs(), b.abs(), c.abs()
    strict = {"min": torch.minimum, "max": torch.maximum}[name]
    loose = {"min": torch.fmin, "max": torch.fmax}[name]
    choose = strict if "NaN" in modifiers else loose
    expected = choose(choose(a, b), c).numpy()
    nan = np.isnan(expected)
    assert (found[nan] == NAN).all()
    values = found[~nan].view(np.float32)
    assert (values == expected[~nan]).all()  # torch takes either zero; ours are ordered, which others test
    assert 0 < nan.sum() < nan.size
    assert (values == 0).any()


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("modifiers", ["", ".NaN", ".abs", ".NaN.abs"])
def test_chains_of_recorded_forms_agree(name: str, modifiers: str) -> None:
    """Bit for bit, zeros' signs too; a NaN loses its sign in abs.f32, which gives the canonical one."""
    words, pair = operands(), f"{name}{modifiers.replace('.abs', '')}.f32"
    magnitudes = "".join(f"abs.f32 %r{r}, %r{r};\n" for r in (2, 3, 4)) if "abs" in modifiers else ""
    chain = f"{magnitudes}{pair} %r5, %r2, %r3;\n{pair} %r1, %r5, %r4;"
    assert {coverage.canonical(form) for form in (pair, "abs.f32")} <= coverage.recorded().keys()
    found = computed(f"{name}{modifiers}.f32 %r1, %r2, %r3, %r4;", words)
    assert (found == computed(chain, words)).all()
