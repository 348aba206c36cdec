"""The examples that need no cubins say what they promise."""

from __future__ import annotations

import pytest

from examples import emulate_your_kernel


def test_the_example_kernel_is_right_and_its_mistake_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    emulate_your_kernel.main()
    said = capsys.readouterr().out
    assert said.count("right: True") == 3
    assert "[race]" in said or "[uninitialised]" in said
