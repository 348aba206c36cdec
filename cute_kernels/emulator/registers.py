"""What a register can hold besides a value: nothing yet, or the result of a load that is still under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

LANES = 32
ALL_LANES = np.ones(LANES, dtype=bool)
ALL_LANES.flags.writeable = False
ALL_BYTES = ALL_LANES.tobytes()
NO_BYTES = bytes(LANES)

STORAGE: dict[int, type[np.generic]] = {
    1: np.bool_,
    8: np.uint16,
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
}
GARBAGE = {np.dtype(kind): np.full(LANES, 0xFBADFBADFBADFBAD & (2 ** (8 * np.dtype(kind).itemsize) - 1), dtype=kind)
            for kind in (np.uint16, np.uint32, np.uint64)}  # fmt: skip
GARBAGE[np.dtype(np.bool_)] = np.zeros(LANES, dtype=bool)
WIDE = np.dtype([("low", np.uint64), ("high", np.uint64)])  # of registers of 128 bits
GARBAGE[WIDE] = np.full((LANES, 2), 0xFBADFBADFBADFBAD, np.uint64).view(WIDE)[:, 0]


def garbage(bits: int) -> NDArray[Any]:
    """What a register of so many bits may hold where nothing was written."""
    return GARBAGE[WIDE if bits == 128 else np.dtype(STORAGE[bits])]


def join(low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[Any]:
    """128-bit values from their halves."""
    values = np.empty(np.broadcast_shapes(low.shape, high.shape), WIDE)
    values["low"], values["high"] = low, high
    return values


class RegisterError(Exception):
    """A register was read that holds no value."""


class NoValue:
    """Stands in a register that cannot be read: every use of it raises RegisterError."""

    __array_ufunc__ = None

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise RegisterError

    __array__ = __getitem__ = __add__ = __sub__ = __mul__ = __and__ = __or__ = __xor__ = __invert__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rand__ = __ror__ = __rxor__ = __lshift__ = __rshift__ = __neg__ = (
        _refuse
    )
    __lt__ = __le__ = __gt__ = __ge__ = __len__ = __iter__ = __bool__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        raise RegisterError


class Undefined(NoValue):
    """A register that nothing wrote."""


class Pending(NoValue):
    """The destination of a tcgen05.ld before tcgen05.wait::ld or of a wgmma before wgmma.wait_group, or a copy of one.

    Compilers move such registers about (mov, packing into 64 bits) before the wait, since to them they are values; so
    moves carry the promise on, and only arithmetic on it is a fault.
    """

    def __init__(self, compute: Callable[[], NDArray[Any]], of: object | None = None) -> None:
        self._compute = compute
        self.of = of  # the product of a wgmma

    def compute(self) -> NDArray[Any]:
        return self._compute()


UNDEFINED = Undefined()


def merge(mask: NDArray[np.bool_], new: Any, old: Any) -> NDArray[Any]:
    """`new` in the lanes of the mask, `old` elsewhere (garbage where there is none)."""
    if type(old) is not np.ndarray:
        if isinstance(old, Pending):
            raise RegisterError
        old = GARBAGE[np.asarray(new).dtype]
    result: NDArray[Any] = np.where(mask, new, old)
    return result
