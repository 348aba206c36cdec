"""One cluster of a launch: its warps take turns, its asynchronous work completes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.cta import Cluster, Cta, SharedMemory
from cute_kernels.emulator.engine import Engine
from cute_kernels.emulator.errors import EmulationError, Place
from cute_kernels.emulator.program import Program
from cute_kernels.emulator.register_pool import RegisterPool
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.setting import Dim3, Setting
from cute_kernels.emulator.warp import Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.grid import Grid

BLOCKS_A_TURN = 256


class Machine:
    """A cluster on its SMs. Its random numbers and its asynchronous work are its own: what it does depends on another
    cluster by way of global memory alone."""

    def __init__(self, grid: Grid, setting: Setting, index: int, origin: Dim3) -> None:
        self.grid, self.setting = grid, setting
        self.program, self.shape, self.params = setting.program, setting.shape, setting.params
        self.memory, self.architecture = setting.memory, setting.architecture
        self.tolerate, self.rank = setting.tolerate, setting.rank
        self.global_shadow, self.trace = setting.global_shadow, setting.trace
        self.report = grid.report
        self.rng = np.random.default_rng((setting.seed, 1 + index))
        self.engine = Engine(setting.schedule, self.rng)
        self.engine.trace = setting.trace
        self.random = setting.schedule == "random"
        self.events = 0  # changes of state that a waiting warp might wait for
        self.quiet = 0  # rounds since the last one
        self._some_done = False  # whether some of its warps have ended
        self.cluster = self._cluster(index, origin)
        self.warps = [warp for cta in self.cluster.ctas for warp in cta.warps]  # that have not ended

    def _cluster(self, index: int, origin: Dim3) -> Cluster:
        shape, program = self.shape, self.program
        cluster = Cluster(index, shape.cluster_size, shape.warps)
        cx, cy, _ = shape.cluster
        for rank in range(cluster.size):
            offset = (rank % cx, rank // cx % cy, rank // (cx * cy))
            place = (origin[0] + offset[0], origin[1] + offset[1], origin[2] + offset[2])
            shared = SharedMemory(program.shared_bytes, program.granule, program.reserved_shared)
            registers = RegisterPool(self.setting.registers_at_entry, shape.warps)
            cta = Cta(cluster, rank, place, shared, self.architecture.has_tensor_memory, registers)
            cluster.ctas.append(cta)
        launch = "" if self.rank is None else f"launch {self.rank}, "
        cluster.number = self.global_shadow.order.enrol(
            cluster.slots, f"{launch}{'cluster of ' if cluster.size > 1 else ''}CTA {origin}", self.rank or 0
        )
        for cta in cluster.ctas:
            cta.warps = [Warp(self, program, cta, i, shape.threads) for i in range(shape.warps)]
        return cluster

    @property
    def unfinished(self) -> bool:
        """Whether some CTA has not ended, or asynchronous work is in flight."""
        return bool(self.warps or len(self.engine))

    def advance(self) -> bool:
        """Gives every warp a turn; whether anything happened that a waiting warp might wait for."""
        if self.warps:
            happened = self._advance()
        else:
            self.engine.run_one()
            happened = True
        self.quiet = 0 if happened else self.quiet + 1
        return happened

    def _advance(self) -> bool:
        events = self.events
        acted = self._round(forced=self.quiet > 0 and not len(self.engine))
        self.engine.run_some()
        if self.events != events:
            return True
        if len(self.engine) and (not acted or self.quiet > 4):
            self._complete()
            return True
        return False

    def _complete(self) -> None:
        """Lets the next asynchronous work complete: until a warp can go on, or but for "random" one operation alone."""
        while True:
            self.engine.run_one()
            self.events += 1
            if self.random or not len(self.engine):
                return
            for warp in self.warps:
                if not warp.asleep:
                    return

    def warp_done(self, warp: Warp) -> None:
        """Called when the last lane of a warp has exited."""
        self.report.instructions += warp.instructions
        self._some_done = True
        cta = warp.cta
        for other in cta.registers.group_of(warp.index):
            self.undefined_registers(cta.registers.left_out(other) if cta.warps[other].done else "")
        for barrier in cta.named.values():
            barrier.leave(LANES)
        if all(other.done for other in cta.warps):
            self._finish(cta)

    def undefined_registers(self, what: str) -> None:
        """Faults for a use of setmaxnreg that the ISA leaves undefined, or warns where that is tolerated; "": none."""
        if what and "setmaxnreg" not in self.tolerate:
            raise EmulationError("registers", what)
        if what:
            self.warn(f"{what} (tolerated)")

    def warn(self, message: str) -> None:
        """Puts a finding into the report, once."""
        if message not in self.report.warnings:
            self.report.warnings.append(message)

    # --- rounds -------------------------------------------------------------------------------------------------

    def _round(self, forced: bool) -> bool:
        """Gives every warp that may go on a turn; whether any had one unforced."""
        warps = self.warps
        if not forced and not self.random and all(warp.asleep for warp in warps):
            return False
        if self.random:
            order = [warps[i] for i in self.rng.permutation(len(warps))]
            blocks = self.rng.integers(1, BLOCKS_A_TURN, len(warps)).tolist()
        else:
            order, blocks = warps, [BLOCKS_A_TURN] * len(warps)
        acted = False
        for warp, count in zip(order, blocks, strict=True):
            if warp.asleep:
                if not forced:
                    continue
            else:
                acted = True
            before = warp.instructions
            warp.turn(count, forced)
            self.grid.steps += warp.instructions - before
            if self.trace is not None:
                self.trace.turn(warp, warp.instructions - before)
            if self.random:
                self.engine.run_some()
        self.grid.check_steps()
        if self._some_done:
            self._some_done = False
            self.warps = [warp for warp in warps if not warp.done]
        return acted

    # --- what warps ask for -------------------------------------------------------------------------------------

    def local_memory(self, program: Program) -> NDArray[np.uint8] | None:
        return np.zeros((LANES, program.local_bytes), dtype=np.uint8) if program.local_bytes else None

    def module_address(self, name: str) -> int:
        return self.setting.variables[name]

    # --- endings ------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Gives the memories and registers back: reports on global memory may name its warps, and so keep the rest."""
        for cta in self.cluster.ctas:
            del cta.shared, cta.tmem
            for warp in cta.warps:
                del warp.registers

    def _finish(self, cta: Cta) -> None:
        """What must hold when a CTA ends."""
        place = Place(source=self.program.kernel.name, cta=cta.index, launch=self.rank)
        if cta.tmem is not None and cta.tmem.allocations:
            held = ", ".join(f"{n} columns at {c}" for c, n in cta.tmem.allocations.items())
            raise EmulationError(
                "tensor-memory", f"the CTA ends with tensor memory not given back: {held}", place
            )
        for barrier in cta.mbarriers.values():
            if barrier.in_flight:
                raise EmulationError(
                    "unfinished",
                    f"the CTA ends while transfers that signal it are in flight: {barrier.describe()}",
                    place,
                )
            if barrier.may_outlive:
                self.warn(
                    f"{self.program.kernel.name}: a CTA ends, and nobody has waited for the last tcgen05.commit that "
                    f"arrives on {barrier.name}; the arrival may meet the shared memory of a later CTA"
                )
            if barrier.tx_bytes:
                raise EmulationError(
                    "transaction-count", f"the CTA ends with bytes outstanding: {barrier.describe()}", place
                )
        for warp in cta.warps:
            if warp.products is not None and warp.products.under_way:
                raise EmulationError(
                    "unfinished",
                    f"the CTA ends, and warp {warp.index} has not waited for its wgmma; end with wgmma.wait_group 0",
                    place,
                )
            lanes = warp.bulk_groups.values()
            reading = [op for lane in lanes for group in lane for op in group if not op.awaited]
            what = (
                f"the CTA ends, and warp {warp.index} has not waited for {len(reading)} of its bulk stores, which may "
                "still read its shared memory; end with cp.async.bulk.wait_group.read 0"
            )
            if reading and "cp.async.bulk" not in self.tolerate:
                raise EmulationError("unfinished", what, place)
            if reading:
                self.warn(f"{self.program.kernel.name}: {what} (tolerated)")
