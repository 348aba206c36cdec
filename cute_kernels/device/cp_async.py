"""cp.async: copies of 16 bytes from global to shared memory by each thread, in groups that the thread waits for.

They are of the generic proxy: a barrier orders them behind the reads of what they overwrite, with no fence.
"""

from __future__ import annotations

from typing import Any

import cutlass.cute as cute
from cutlass import Int32
from cutlass.experimental import primitives as prims


def copy(target: Any, source: Any, inside: Any) -> None:
    """Start to copy 16 bytes, aligned on both sides, past L1; zeros where `inside` is false: nothing is read then."""
    nbytes = Int32(16) if inside is True else Int32(inside) * 16
    prims.cp_async_shared_global(target, source, 16, prims.LoadCacheModifier.CG, cp_size=nbytes)


def commit() -> None:
    """Make a group of this thread's copies since the last call; an empty one counts too."""
    cute.arch.cp_async_commit_group()


def wait(pending: int) -> None:
    """Wait until at most the `pending` newest of this thread's groups are under way; others need a barrier behind."""
    cute.arch.cp_async_wait_group(pending)
