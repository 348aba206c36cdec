"""Groups of lanes that wait for something certain: they cost nothing until it has happened.

What can be waited for (a barrier, a copy) keeps a list of who sleeps until then. A group may sleep until several
things have happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cute_kernels.emulator.warp import Group, Warp

Sleepers = list["Sleep"]


class Meeting:
    """What a group has for its sleep that waits for other lanes of its warp: it tries again whenever one is awake."""


MEETING = Meeting()


class Sleep:
    """One group's sleep until `left` things have happened. A turn that it is given all the same ends it."""

    def __init__(self, warp: Warp, group: Group, left: int) -> None:
        self._warp, self._group, self.left = warp, group, left
        group.sleep = self

    def end(self) -> None:
        """Has the group executed at its next turn."""
        if self._group.sleep is self:
            self._group.sleep = None
            self._warp.asleep = False


def sleep_until(warp: Warp, group: Group, *happenings: Sleepers) -> None:
    """Puts a group to sleep until all of these have happened."""
    one = Sleep(warp, group, len(happenings))
    for sleepers in happenings:
        sleepers.append(one)


def wake(sleepers: Sleepers) -> None:
    """What they waited for has happened."""
    for one in sleepers:
        one.left -= 1
        if one.left <= 0:
            one.end()
    sleepers.clear()
