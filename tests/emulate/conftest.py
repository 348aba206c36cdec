"""What the tests of operations share: cubins of some variants, and the runtime taking them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cute_kernels.runtime import Library, context
from tests.building import Request, build


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cubins for sm_100a of the variants that a module's `CUBINS` name: a pattern, or several."""
    patterns: str | tuple[str, ...] = request.module.CUBINS
    out: Path = tmp_path_factory.mktemp("cubins")
    for only in (patterns,) if isinstance(patterns, str) else patterns:
        assert not build(
            Request(out, ("sm_100a",), only, packages=("sm100",)), say=lambda line: None
        ).failures
    return out


@pytest.fixture
def cubins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The same as all that operations find; a test may leave some of its records out."""
    library = Library(folder)
    monkeypatch.setattr(context._settings, "library", library)
    return library
