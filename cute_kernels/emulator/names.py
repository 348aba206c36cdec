"""The names by which generated code reaches values that exist before it runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from cute_kernels.emulator.memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from cute_kernels.emulator.registers import LANES

_WINDOWS = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW, "global": 0, "const": 0}


class Names:
    """What alu.translate asks for while it writes expressions."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._constants: dict[Any, str] = {}

    def constant(self, value: Any) -> str:
        """A name for a prebuilt value; equal values share one."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.dtype != object else id(value)
        if key not in self._constants:
            name = f"K{len(self._constants)}"
            self._constants[key] = name
            self._namespace[name] = value
        return self._constants[key]

    def special(self, name: str) -> str:
        return f"w.special[{name!r}]"

    def symbol(self, name: str) -> str:
        return f"w.symbol_lanes({name!r})"

    def cvta(self, space: str, to_generic: bool, expression: str) -> str:
        """The generic form of an address of a state space, or back: the windows differ by a constant."""
        base = _WINDOWS[space.split("::")[0]]
        if not base:
            return expression
        name = self.constant(np.full(LANES, base, dtype=np.uint64))
        return f"(({expression}) {'+' if to_generic else '-'} {name})"
