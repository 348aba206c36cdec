"""The special registers of a warp (PTX ISA, "Special Registers")."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.registers import LANES

if TYPE_CHECKING:
    from cute_kernels.emulator.cta import Cta
    from cute_kernels.emulator.setting import Setting


_CLOCKS = ("%clock", "%clock64", "%clock_hi", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi")


class SpecialRegisters(dict[str, Any]):
    """The special registers of a warp's lanes by name, uint32 (64-bit ones uint64) arrays of 32; each is made when it
    is first read, and the clocks, which change, with every read."""

    def __init__(self, setting: Setting, cta: Cta, warp: int) -> None:
        super().__init__()
        self._setting, self._cta, self._warp = setting, cta, warp
        self._ticks = 0

    def __missing__(self, name: str) -> Any:
        if name in _CLOCKS:
            return self._clock(name)
        base, _, axis = name.partition(".")
        found = self._of_lanes(name) if axis not in ("x", "y", "z") else self._along(base, "xyz".index(axis))
        if found is None:
            raise EmulationError("unknown-instruction", f"the special register {name} is not modelled")
        if isinstance(found, int):
            found = np.full(LANES, found, dtype=np.uint32)
        self[name] = found
        return found

    def _clock(self, name: str) -> NDArray[Any]:
        self._ticks += 32
        wide = name.endswith(("64", "timer"))
        value = self._ticks >> 32 if name.endswith("_hi") else self._ticks
        return np.full(LANES, value, dtype=np.uint64 if wide else np.uint32)

    def _of_lanes(self, name: str) -> NDArray[Any] | int | None:
        """A register that has no axis; None if there is no such."""
        setting, cta, program = self._setting, self._cta, self._setting.program
        lanes, one = np.arange(LANES, dtype=np.uint32), np.uint32(1)
        found: dict[str, Callable[[], NDArray[Any] | int]] = {
            "%laneid": lambda: lanes,
            "%warpid": lambda: self._warp,
            "%nwarpid": lambda: setting.shape.warps,
            "%smid": lambda: cta.cluster.index * cta.cluster.size % setting.num_sms + cta.rank,
            "%nsmid": lambda: setting.num_sms,
            "%gridid": lambda: np.zeros(LANES, dtype=np.uint64),
            "%lanemask_eq": lambda: one << lanes,
            "%lanemask_lt": lambda: (one << lanes) - one,
            "%lanemask_le": lambda: ((np.uint32(2) << lanes) - one).astype(np.uint32),
            "%lanemask_ge": lambda: ~((one << lanes) - one),
            "%lanemask_gt": lambda: ~((np.uint32(2) << lanes) - one).astype(np.uint32),
            "%dynamic_smem_size": lambda: program.shared_bytes - program.reserved_shared,
            "%total_smem_size": lambda: program.shared_bytes,
            "%cluster_ctarank": lambda: cta.rank,
            "%cluster_nctarank": lambda: cta.cluster.size,
            "%is_explicit_cluster": lambda: np.full(LANES, cta.cluster.size > 1),
            "WARP_SZ": lambda: LANES,
        }
        return found[name]() if name in found else None

    def _along(self, base: str, axis: int) -> NDArray[Any] | int | None:
        """A register of one axis; None if there is no such."""
        shape = self._setting.shape
        if base == "%tid":
            linear = np.arange(LANES, dtype=np.uint32) + np.uint32(self._warp * LANES)
            linear = linear // np.uint32(prod(shape.block[:axis]))
            return linear if axis == 2 else linear % np.uint32(shape.block[axis])
        cluster, index = shape.cluster[axis], self._cta.index[axis]
        return {
            "%ntid": shape.block[axis],
            "%ctaid": index,
            "%nctaid": shape.grid[axis],
            "%clusterid": index // cluster,
            "%nclusterid": shape.grid[axis] // cluster,
            "%cluster_ctaid": index % cluster,
            "%cluster_nctaid": cluster,
        }.get(base)
