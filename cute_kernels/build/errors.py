"""What the build refuses."""

from __future__ import annotations


class BuildError(Exception):
    """A kernel that cannot be built, or a request that names none; the message says what to do."""
