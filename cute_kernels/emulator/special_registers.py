"""The special registers of a warp (PTX ISA, "Special Registers")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.registers import LANES

if TYPE_CHECKING:
    from cute_kernels.emulator.cta import Cta
    from cute_kernels.emulator.setting import Setting


def special_registers(setting: Setting, cta: Cta, warp: int) -> dict[str, Any]:
    """The special registers of a warp's lanes, uint32 (64-bit ones uint64) arrays of 32."""

    def same(value: int) -> NDArray[np.uint32]:
        return np.full(LANES, value, dtype=np.uint32)

    shape, program = setting.shape, setting.program
    lanes = np.arange(LANES, dtype=np.uint32)
    linear = lanes + np.uint32(warp * LANES)
    bx, by, _ = shape.block
    found: dict[str, Any] = {
        "%laneid": lanes,
        "%warpid": same(warp),
        "%nwarpid": same(shape.warps),
        "%tid.x": linear % np.uint32(bx),
        "%tid.y": linear // np.uint32(bx) % np.uint32(by),
        "%tid.z": linear // np.uint32(bx * by),
        "%smid": same(cta.cluster.index * cta.cluster.size % setting.num_sms + cta.rank),
        "%nsmid": same(setting.num_sms),
        "%gridid": np.zeros(LANES, dtype=np.uint64),
        "%lanemask_eq": np.uint32(1) << lanes,
        "%lanemask_lt": (np.uint32(1) << lanes) - np.uint32(1),
        "%lanemask_le": ((np.uint32(2) << lanes) - np.uint32(1)).astype(np.uint32),
        "%dynamic_smem_size": same(program.shared_bytes - program.reserved_shared),
        "%total_smem_size": same(program.shared_bytes),
        "%cluster_ctarank": same(cta.rank),
        "%cluster_nctarank": same(cta.cluster.size),
        "%is_explicit_cluster": np.full(LANES, cta.cluster.size > 1),
        "WARP_SZ": same(LANES),
    }
    found["%lanemask_ge"] = ~found["%lanemask_lt"]
    found["%lanemask_gt"] = ~found["%lanemask_le"]
    for axis, name in enumerate("xyz"):
        cluster = shape.cluster[axis]
        found[f"%ntid.{name}"] = same(shape.block[axis])
        found[f"%ctaid.{name}"] = same(cta.index[axis])
        found[f"%nctaid.{name}"] = same(shape.grid[axis])
        found[f"%clusterid.{name}"] = same(cta.index[axis] // cluster)
        found[f"%nclusterid.{name}"] = same(shape.grid[axis] // cluster)
        found[f"%cluster_ctaid.{name}"] = same(cta.index[axis] % cluster)
        found[f"%cluster_nctaid.{name}"] = same(cluster)
    return _Clocks(found)


class _Clocks(dict[str, Any]):
    """Special registers, of which the clocks change with every read."""

    def __init__(self, fixed: dict[str, Any]) -> None:
        super().__init__(fixed)
        self._ticks = 0

    def __missing__(self, name: str) -> Any:
        if name in ("%clock", "%clock64", "%clock_hi", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi"):
            self._ticks += 32
            wide = name.endswith(("64", "timer"))
            value = self._ticks >> 32 if name.endswith("_hi") else self._ticks
            return np.full(LANES, value, dtype=np.uint64 if wide else np.uint32)
        raise EmulationError("unknown-instruction", f"the special register {name} is not modelled")
