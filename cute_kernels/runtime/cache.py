"""A bounded cache that threads share."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """A dict of at most `capacity` entries that drops the oldest.

    A hit takes no lock and moves nothing, because it is on the path of every call; so the order is that of
    insertion, not of use. Two threads that miss at once both compute, and the first to insert wins.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: dict[Hashable, V] = {}
        self._lock = threading.Lock()
        self.get = self._entries.get  # V | None; bound once: half the cost of a method call

    def add(self, key: Hashable, value: V) -> V:
        """Insert unless the key is there already; return what the cache holds for it."""
        with self._lock:
            held = self._entries.setdefault(key, value)
            while len(self._entries) > self.capacity:
                del self._entries[next(iter(self._entries))]
        return held

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
