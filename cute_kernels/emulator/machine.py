"""One launch: clusters of CTAs take their places on the SMs, warps take turns, asynchronous work completes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.architecture import Architecture
from cute_kernels.emulator.cta import Cluster, Cta, SharedMemory
from cute_kernels.emulator.diagnosis import barrier_table, why_stuck
from cute_kernels.emulator.engine import Engine
from cute_kernels.emulator.errors import EmulationError, Place, Report
from cute_kernels.emulator.global_shadow import GlobalShadow
from cute_kernels.emulator.memory import GlobalMemory
from cute_kernels.emulator.program import Program
from cute_kernels.emulator.register_pool import RegisterPool
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.trace import Trace
from cute_kernels.emulator.warp import Warp

Dim3 = tuple[int, int, int]

BLOCKS_A_TURN = 256
# Faults whose report shows the barriers of the cluster.
_ABOUT_ORDER = (
    "race",
    "missing-wait",
    "barrier",
    "transaction-count",
    "deadlock",
    "unfinished",
    "uninitialised",
)
QUIET_ROUNDS = 64  # rounds of polling with no event after which waiting is called a deadlock


@dataclass(frozen=True)
class LaunchShape:
    """The dimensions of a launch: CTAs, threads, CTAs of a cluster."""

    grid: Dim3
    block: Dim3
    cluster: Dim3

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def warps(self) -> int:
        return -(-self.threads // LANES)


class Machine:
    """The state of one launch."""

    def __init__(
        self,
        program: Program,
        shape: LaunchShape,
        params: NDArray[np.uint8],
        memory: GlobalMemory,
        architecture: Architecture,
        num_sms: int,
        schedule: str,
        seed: int,
        step_limit: int,
        module_memory: dict[str, NDArray[np.uint8]],
        global_shadow: GlobalShadow,
        trace: Trace | None = None,
        rank: int | None = None,
        tolerate: frozenset[str] = frozenset(),
        registers_at_entry: int | None = None,
    ) -> None:
        self.program, self.shape, self.params = program, shape, params
        self.memory, self.architecture = memory, architecture
        self.rng = np.random.default_rng(seed)
        self.engine = Engine(schedule, self.rng)
        self.trace = self.engine.trace = trace
        self.tolerate = tolerate
        self.registers_at_entry = registers_at_entry  # a thread, as far as setmaxnreg may rely on it
        self.rank = rank  # among launches side by side
        self.global_shadow = global_shadow
        self.random = schedule == "random"
        self.step_limit = step_limit
        self.module_memory = module_memory
        self.report = Report(program.kernel.name, shape.grid, shape.block, shape.cluster, schedule, seed)
        self.events = 0  # changes of state that a waiting warp might wait for
        self.steps = 0  # instructions that its warps have executed
        cluster_size = shape.cluster[0] * shape.cluster[1] * shape.cluster[2]
        self.resident_clusters = max(1, num_sms // cluster_size)
        self.num_sms = num_sms
        self._waiting = deque(self._cluster_origins())
        self._requests = 0  # that a cluster be cancelled
        self._warps: list[Warp] = []
        self._some_done = False  # whether warps among them have ended
        self._clusters: list[Cluster] = []

    @property
    def unfinished(self) -> bool:
        """Whether some CTA has not ended, or asynchronous work is in flight."""
        return bool(self._waiting or self._warps or len(self.engine))

    def advance(self, quiet: int) -> bool:
        """Gives every warp a turn; whether anything happened that a waiting warp might wait for.

        quiet: for how many rounds nothing has. Raises the first fault.
        """
        try:
            if self._waiting or self._warps:
                return self._advance(quiet)
            self.engine.run_one()
            return True
        except EmulationError as fault:
            self.explain(fault)
            raise

    def _advance(self, quiet: int) -> bool:
        self._admit()
        events = self.events
        acted = self._round(forced=quiet > 0 and not len(self.engine))
        self.engine.run_some()
        if self.events != events:
            return True
        if len(self.engine) and (not acted or quiet > 4):
            self.engine.run_one()
            self.events += 1
            return True
        return False

    def explain(self, fault: EmulationError) -> None:
        """Adds to a fault what the state of this launch tells."""
        stuck = [group for warp in self._warps for group in warp.groups]
        clusters = [c for c in self._clusters if any(cta.index == fault.place.cta for cta in c.ctas)]
        short = [
            line for cluster in self._clusters for cta in cluster.ctas for line in cta.registers.shortage()
        ]
        fault.explain(
            [*dict.fromkeys(short), *why_stuck(stuck)] if fault.kind == "deadlock" else [],
            barrier_table(clusters) if fault.kind in _ABOUT_ORDER else [],
        )

    def cancel(self) -> Dim3 | None:
        """The first CTA of a cluster that from now on will not start; None where the request fails.

        Which cluster it is, and whether a request fails while one waits (as it may for the sake of another grid), is
        open. "eager" grants whatever can be, "lazy" every other request, "random" three of four, of any cluster.
        """
        self._requests += 1
        refused = {"eager": False, "lazy": self._requests % 2 == 0, "random": self.rng.random() < 0.25}
        if not self._waiting or refused[self.engine.schedule]:
            return None
        at = int(self.rng.integers(len(self._waiting))) if self.random else 0
        _, origin = self._waiting[at]
        del self._waiting[at]
        return origin

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
        warps = self._warps
        if not forced and not self.random and all(warp.asleep for warp in warps):
            return False
        if self.random:
            order = [warps[i] for i in self.rng.permutation(len(warps))]
            blocks = self.rng.integers(1, BLOCKS_A_TURN, len(warps)).tolist()
        else:
            order, blocks = warps, [BLOCKS_A_TURN] * len(warps)
        acted = False
        if self.trace is not None:
            self.trace.next_round()
        for warp, count in zip(order, blocks, strict=True):
            if warp.asleep:
                if not forced:
                    continue
            else:
                acted = True
            before = warp.instructions
            warp.turn(count, forced)
            self.steps += warp.instructions - before
            if self.trace is not None:
                self.trace.turn(warp, warp.instructions - before)
            if self.random:
                self.engine.run_some()
        if self.steps > self.step_limit:
            raise EmulationError(
                "step-limit",
                f"more than {self.step_limit} warp instructions; raise Device(step_limit=...) if that is right",
            )
        if self._some_done:
            self._some_done = False
            self._warps = [warp for warp in warps if not warp.done]
            self._clusters = [
                c for c in self._clusters if any(not w.done for cta in c.ctas for w in cta.warps)
            ]
        return acted

    def _admit(self) -> None:
        while self._waiting and len(self._clusters) < self.resident_clusters:
            index, origin = self._waiting.popleft()
            cluster = Cluster(index, self._cluster_size, self.shape.warps)
            cx, cy, _ = self.shape.cluster
            for rank in range(cluster.size):
                offset = (rank % cx, rank // cx % cy, rank // (cx * cy))
                place = (origin[0] + offset[0], origin[1] + offset[1], origin[2] + offset[2])
                shared = SharedMemory(
                    self.program.shared_bytes, self.program.granule, self.program.reserved_shared
                )
                registers = RegisterPool(self.registers_at_entry, self.shape.warps)
                cta = Cta(cluster, rank, place, shared, self.architecture.has_tensor_memory, registers)
                cluster.ctas.append(cta)
            cluster.number = self.global_shadow.order.enrol(
                cluster.slots,
                f"{self._launch}{'cluster of ' if cluster.size > 1 else ''}CTA {origin}",
                self.rank or 0,
            )
            for cta in cluster.ctas:
                cta.warps = [
                    Warp(self, self.program, cta, i, self.shape.threads) for i in range(self.shape.warps)
                ]
                self._warps.extend(cta.warps)
            self._clusters.append(cluster)
            self.events += 1

    @property
    def _launch(self) -> str:
        return "" if self.rank is None else f"launch {self.rank}, "

    @property
    def _cluster_size(self) -> int:
        x, y, z = self.shape.cluster
        return x * y * z

    def _cluster_origins(self) -> Iterator[tuple[int, Dim3]]:
        (gx, gy, gz), (cx, cy, cz) = self.shape.grid, self.shape.cluster
        index = 0
        for z in range(0, gz, cz):
            for y in range(0, gy, cy):
                for x in range(0, gx, cx):
                    yield index, (x, y, z)
                    index += 1

    # --- what warps ask for -------------------------------------------------------------------------------------

    def special_registers(self, cta: Cta, warp: int) -> dict[str, Any]:
        """The special registers of a warp's lanes, uint32 (64-bit ones uint64) arrays of 32."""

        def same(value: int) -> NDArray[np.uint32]:
            return np.full(LANES, value, dtype=np.uint32)

        lanes = np.arange(LANES, dtype=np.uint32)
        linear = lanes + np.uint32(warp * LANES)
        bx, by, _ = self.shape.block
        found: dict[str, Any] = {
            "%laneid": lanes,
            "%warpid": same(warp),
            "%nwarpid": same(self.shape.warps),
            "%tid.x": linear % np.uint32(bx),
            "%tid.y": linear // np.uint32(bx) % np.uint32(by),
            "%tid.z": linear // np.uint32(bx * by),
            "%smid": same(cta.cluster.index * cta.cluster.size % self.num_sms + cta.rank),
            "%nsmid": same(self.num_sms),
            "%gridid": np.zeros(LANES, dtype=np.uint64),
            "%lanemask_eq": np.uint32(1) << lanes,
            "%lanemask_lt": (np.uint32(1) << lanes) - np.uint32(1),
            "%lanemask_le": ((np.uint32(2) << lanes) - np.uint32(1)).astype(np.uint32),
            "%dynamic_smem_size": same(self.program.shared_bytes - self.program.reserved_shared),
            "%total_smem_size": same(self.program.shared_bytes),
            "%cluster_ctarank": same(cta.rank),
            "%cluster_nctarank": same(cta.cluster.size),
            "%is_explicit_cluster": np.full(LANES, cta.cluster.size > 1),
            "WARP_SZ": same(LANES),
        }
        found["%lanemask_ge"] = ~found["%lanemask_lt"]
        found["%lanemask_gt"] = ~found["%lanemask_le"]
        for axis, name in enumerate("xyz"):
            cluster = self.shape.cluster[axis]
            found[f"%ntid.{name}"] = same(self.shape.block[axis])
            found[f"%ctaid.{name}"] = same(cta.index[axis])
            found[f"%nctaid.{name}"] = same(self.shape.grid[axis])
            found[f"%clusterid.{name}"] = same(cta.index[axis] // cluster)
            found[f"%nclusterid.{name}"] = same(self.shape.grid[axis] // cluster)
            found[f"%cluster_ctaid.{name}"] = same(cta.index[axis] % cluster)
            found[f"%cluster_nctaid.{name}"] = same(cluster)
        return _Clocks(found, self)

    def local_memory(self, program: Program) -> NDArray[np.uint8] | None:
        return np.zeros((LANES, program.local_bytes), dtype=np.uint8) if program.local_bytes else None

    def module_address(self, name: str) -> int:
        return int(self.module_memory[name].ctypes.data)

    # --- endings ------------------------------------------------------------------------------------------------

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

    def deadlock(self) -> EmulationError:
        """The fault when nothing happens any more."""
        lines = ["every warp waits and nothing is in flight."]
        stuck = [warp for warp in self._warps if not warp.done]
        lines.append("warps:")
        lines += [f"    {warp.describe()}" for warp in stuck[:64]]
        first = stuck[0]
        instruction = self.program.kernel.instructions[first.groups[0].pc]
        fault = EmulationError("deadlock", "\n  ".join(lines), self.program.place(first, instruction))
        self.explain(fault)
        return fault


def run_together(machines: list[Machine]) -> None:
    """Runs launches side by side to their ends, or raises the first fault of one."""
    quiet = 0
    while unfinished := [machine for machine in machines if machine.unfinished]:
        happened = [machine.advance(quiet) for machine in unfinished]
        quiet = 0 if any(happened) else quiet + 1
        if quiet > QUIET_ROUNDS:
            raise unfinished[0].deadlock()


class _Clocks(dict[str, Any]):
    """Special registers, of which the clocks change with every read."""

    def __init__(self, fixed: dict[str, Any], machine: Machine) -> None:
        super().__init__(fixed)
        self._machine = machine
        self._ticks = 0

    def __missing__(self, name: str) -> Any:
        if name in ("%clock", "%clock64", "%clock_hi", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi"):
            self._ticks += 32
            wide = name.endswith(("64", "timer"))
            value = self._ticks >> 32 if name.endswith("_hi") else self._ticks
            return np.full(LANES, value, dtype=np.uint64 if wide else np.uint32)
        raise EmulationError("unknown-instruction", f"the special register {name} is not modelled")
