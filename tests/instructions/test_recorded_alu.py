"""Per-lane instructions against what an H200 gave for the same inputs.

tests/recorded/alu.npz, written by record_alu.py: the forms of alu_forms with 512 inputs each, edges of the formats
among them. What the ISA defines to the bit is equal bit for bit; approximations lie within the bounds of alu_forms,
and agree on NaN, infinity and zero.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.instructions import alu_harness
from tests.recorded.alu_forms import BITS, Form, as_numbers, declarations, forms
from tests.recorded.alu_inputs import COUNT, inputs

RECORDING = pathlib.Path(__file__).parent.parent / "recorded" / "alu.npz"
FORMS = forms()


@functools.cache
def recorded() -> dict[str, list[NDArray[Any]]]:
    """Results by form: uint16, uint32, uint64 or bool arrays of COUNT."""
    with np.load(RECORDING) as file:
        names, data = list(file["names"]), file["results"]
    assert names == [form.name for form in FORMS], "the recording is of other forms: run record_alu.py again"
    found, at = {}, 0
    for form in FORMS:
        results = []
        for name in form.results:
            nbytes = COUNT * BITS[name] // 8
            part = data[at : at + nbytes]
            results.append(np.unpackbits(part) == 1 if name == "p" else part.view(f"u{BITS[name] // 8}"))
            at += nbytes
        found[form.name] = results
    assert at == len(data)
    return found


def emulate(form: Form) -> list[NDArray[Any]]:
    sources = {f"%s{i}": value for i, value in enumerate(inputs(form.name, form.sources))}
    registers = alu_harness.run(form.body, sources, declarations(form))
    return [np.ascontiguousarray(registers[f"%d{i}"]) for i in range(len(form.results))]


@pytest.mark.parametrize("form", [f for f in FORMS if f.exact], ids=lambda f: f.name)
def test_exact(form: Form) -> None:
    for result, expected in zip(emulate(form), recorded()[form.name], strict=True):
        wrong = np.flatnonzero(result != expected)
        if len(wrong):
            i = wrong[0]
            given = [hex(values[i]) for values in inputs(form.name, form.sources)]
            pytest.fail(f"{len(wrong)} differ; of {given}: {result[i]:#x}, recorded {expected[i]:#x}")


@pytest.mark.parametrize("form", [f for f in FORMS if not f.exact], ids=lambda f: f.name)
def test_approximate(form: Form) -> None:
    (result,), (expected,) = emulate(form), recorded()[form.name]
    x, y = as_numbers(result, form.number), as_numbers(expected, form.number)
    special = ~np.isfinite(x) | ~np.isfinite(y) | (y == 0)
    same = (np.isnan(x) & np.isnan(y)) | ((x == y) & (np.signbit(x) == np.signbit(y)))
    assert same[special].all()
    x, y = x[~special], y[~special]
    error, bound = np.abs(x - y), form.relative * np.abs(y) + form.absolute
    assert (error <= bound).all(), f"error of {error.max()}"
