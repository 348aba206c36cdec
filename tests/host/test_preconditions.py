"""docs/preconditions.md names tests that there are, and all cases of what no kernel takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "preconditions.md").read_text()
NAMED = sorted(set(re.findall(r'`(test_\w+)(?:::(test_\w+)|\["([^"]+)"\])`', PAGE)))


def text(file: str) -> str:
    """The source of a test file of this folder, or of tests/emulate."""
    (path,) = [
        p for p in (ROOT / "tests" / folder / f"{file}.py" for folder in ("host", "emulate")) if p.exists()
    ]
    return path.read_text()


@pytest.mark.parametrize(("file", "test", "case"), NAMED, ids=[f"{f}-{t or c}" for f, t, c in NAMED])
def test_what_the_page_names_exists(file: str, test: str, case: str) -> None:
    source = text(file)
    assert f"def {test}(" in source if test else f'    "{case}": ' in source


def test_the_page_is_a_table_of_tests() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 50
    for row in rows:
        _, required, tests, _ = row.split("|")
        assert required.strip() == "required" or re.search(r"`test_\w+(::|\[)", tests), row


def test_the_page_names_what_no_kernel_takes() -> None:
    cases = re.findall(r'^    "([^"]+)": \(', text("test_refusals_supported"), re.MULTILINE)
    assert len(cases) > 10
    assert {case for file, _, case in NAMED if file == "test_refusals_supported"} == set(cases)
