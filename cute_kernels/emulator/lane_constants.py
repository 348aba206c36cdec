"""Constants as whole arrays: an operation of two arrays of one length is faster than one that broadcasts a scalar."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ByLength(dict[int, NDArray[Any]]):
    """One value repeated: ByLength(value)[n] has shape (n,), for arrays whose last axis has length n."""

    def __init__(self, value: np.generic) -> None:
        super().__init__()
        self.value = value

    def __missing__(self, length: int) -> NDArray[Any]:
        lanes = self[length] = np.full(length, self.value)
        lanes.flags.writeable = False
        return lanes
