"""What the build refuses."""

from __future__ import annotations

EXTRA = "the extra `build` of this project brings it: pip install -c constraints.txt -e '.[build]'"


class BuildError(Exception):
    """A kernel that cannot be built, or a request that names none; the message says what to do."""
