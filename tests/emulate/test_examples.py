"""The examples that need no cubins say what they promise."""

from __future__ import annotations

import emulate_dsl_kernel
import emulate_your_kernel
import pytest


def test_the_example_kernel_is_right_and_its_mistake_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    emulate_your_kernel.main()
    said = capsys.readouterr().out
    assert said.count("right: True") == 3
    assert "[race]" in said or "[uninitialised]" in said


def test_the_example_of_the_dsl_is_right_and_its_mistake_has_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulate_dsl_kernel.main()
    said = capsys.readouterr().out
    assert said.count("right: True") == 3
    assert "[out-of-range]" in said and "emulate_dsl_kernel.py:" in said
    assert "> y[index] = a * x[index] + y[index]" in said
