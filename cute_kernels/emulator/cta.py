"""The state of a CTA and of a cluster: shared memory, tensor memory, barriers, and the clocks of their agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import READY, SOME, SlotTable
from cute_kernels.emulator.diagnosis import REMEMBERED_TENSOR, Running, last_events
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.mbarrier import MBarrier, NamedBarrier
from cute_kernels.emulator.memory import OFFSET_MASK, RANK_SHIFT, UNSIGNED, poison
from cute_kernels.emulator.shadow import Codes, Conflict, Region, Shadow, Where

if TYPE_CHECKING:
    from cute_kernels.emulator.lanes import Access
    from cute_kernels.emulator.register_pool import RegisterPool
    from cute_kernels.emulator.warp import Warp

TMEM_LANES, TMEM_COLUMNS = 128, 512
MBARRIERS_A_CTA = 96
MBARRIER_BYTES = 8


class SharedMemory:
    """Bytes of one CTA's shared memory, from offset 0 of its window, with their shadow."""

    def __init__(self, nbytes: int, granule: int, reserved: int) -> None:
        self.nbytes = nbytes
        self.reserved = reserved  # bytes at the start of the window that belong to the system
        self.bytes = poison(nbytes)
        self.granule = granule
        self.shadow = Shadow(nbytes // granule)
        self.barrier_bytes = np.zeros(nbytes // MBARRIER_BYTES, dtype=bool)
        self.barriers = nbytes, 0  # the bytes that all mbarriers so far lie in
        self.chunks = self.bytes.view(np.complex128)  # of 16 bytes: the elements that NumPy gathers fastest
        self._views: dict[int, NDArray[np.unsignedinteger]] = {}

    def view(self, width: int) -> NDArray[np.unsignedinteger]:
        """The memory as elements of `width` bytes."""
        found = self._views.get(width)
        if found is None:
            found = self._views[width] = self.bytes[: self.nbytes // width * width].view(UNSIGNED[width])
        return found

    def hold_barrier(self, offset: int) -> None:
        """An mbarrier lies at `offset` from now on."""
        self.barrier_bytes[offset // MBARRIER_BYTES] = True
        low, high = self.barriers
        self.barriers = min(low, offset), max(high, offset + MBARRIER_BYTES)

    def check(self, low: int, high: int, what: str) -> None:
        """Refuses bytes [low, high) that are not all allocated."""
        if low < self.reserved or high > self.nbytes:
            raise EmulationError(
                "out-of-range",
                f"{what} touches shared memory bytes [{low:#x}, {high:#x}); the CTA has [{self.reserved:#x}, "
                f"{self.nbytes:#x})",
                address=low,
            )

    def granules(self, offset: int, nbytes: int) -> slice:
        """The granules of a contiguous run."""
        return slice(offset // self.granule, -(-(offset + nbytes) // self.granule))

    def granules_at(self, offsets: NDArray[np.int64], nbytes: int) -> NDArray[np.int64]:
        """The granules of runs of `nbytes` at each offset (offsets and nbytes multiples of the granule)."""
        first = offsets // self.granule
        count = max(1, nbytes // self.granule)
        if count == 1:
            return first
        return (first[:, None] + np.arange(count)).ravel()


class TensorMemory:
    """128 lanes x 512 columns of 32 bits, its shadow, and who has allocated what."""

    def __init__(self) -> None:
        self.words = poison(TMEM_LANES * TMEM_COLUMNS * 4).view(np.uint32).reshape(TMEM_LANES, TMEM_COLUMNS)
        self.shadow = Shadow(TMEM_LANES * TMEM_COLUMNS, REMEMBERED_TENSOR, row=TMEM_COLUMNS)
        self.allocations: dict[int, int] = {}  # first column -> columns
        self.owned = np.zeros(TMEM_COLUMNS, dtype=bool)
        self.relinquished = False
        self.joined = 0  # allocations that it took part in as one of a pair
        self.joining: dict[
            int, int
        ] = {}  # by warp that waits for the other CTA's part: the number of its own

    def allocate(self, columns: int) -> int | None:
        """The first column of a fresh allocation; None if it does not fit now."""
        if self.relinquished:
            raise EmulationError(
                "tensor-memory", "tcgen05.alloc after this CTA relinquished its permit to allocate"
            )
        if columns not in (32, 64, 128, 256, 512):
            raise EmulationError(
                "tensor-memory",
                f"tcgen05.alloc of {columns} columns; powers of two from 32 to 512 are allowed",
            )
        for first in range(0, TMEM_COLUMNS - columns + 1, 32):
            if not self.owned[first : first + columns].any():
                self.allocations[first] = columns
                self.owned[first : first + columns] = True
                return first
        return None

    def release(self, address: int, columns: int) -> slice:
        """Gives an allocation back; the granules that hold nothing from now on."""
        first = address & 0xFFFF
        if self.allocations.get(first) != columns or address >> 16:
            raise EmulationError(
                "tensor-memory",
                f"tcgen05.dealloc of {columns} columns at {address:#x}; allocated are "
                + (", ".join(f"{n} at column {c}" for c, n in self.allocations.items()) or "none"),
            )
        del self.allocations[first]
        self.owned[first : first + columns] = False
        return slice(first, first + columns)

    def check_columns(self, columns: slice | NDArray[np.int64], what: str) -> None:
        """Refuses columns outside every allocation."""
        if isinstance(columns, slice):
            for first, count in self.allocations.items():
                if first <= columns.start and columns.stop <= first + count:
                    return
            low, high = columns.start, columns.stop - 1
        else:
            low, high = int(columns.min()), int(columns.max())
        if low < 0 or high >= TMEM_COLUMNS or not self.owned[columns].all():
            raise EmulationError(
                "out-of-range",
                f"{what} touches tensor memory columns {low} to {high}; allocated are "
                + (", ".join(f"{n} at column {c}" for c, n in self.allocations.items()) or "none"),
                address=low,
            )


class Cluster:
    """Co-resident CTAs, the slots of their clocks, and the cluster barrier."""

    def __init__(self, index: int, size: int, warps_a_cta: int) -> None:
        self.index = index
        self.size = size
        self.warps_a_cta = warps_a_cta
        self.slots = SlotTable(size * warps_a_cta, size * MBARRIERS_A_CTA)
        self.ctas: list[Cta] = []
        self.running = Running()
        self.number = 0  # among all clusters that global memory may bring together
        self.barrier = NamedBarrier("the cluster barrier", self.slots.new_clock(2))

    def at_address(self, address: int) -> tuple[Cta, int]:
        """The CTA and the offset that a shared::cluster address means."""
        rank, offset = address >> RANK_SHIFT, address & OFFSET_MASK
        if rank >= self.size:
            raise EmulationError(
                "out-of-range",
                f"shared::cluster address {address:#x} names CTA rank {rank} of a cluster of {self.size}",
                address=address,
            )
        return self.ctas[rank], offset


class Cta:
    """One CTA: its memories, its barriers and its warps."""

    def __init__(
        self,
        cluster: Cluster,
        rank: int,
        index: tuple[int, int, int],
        shared: SharedMemory,
        has_tmem: bool,
        registers: RegisterPool,
    ) -> None:
        self.cluster = cluster
        self.rank = rank
        self.index = index
        self.shared = shared
        self.tmem = TensorMemory() if has_tmem else None
        for memory in (self.shared, self.tmem):
            if memory is not None:
                memory.shadow.running = cluster.running
        self.mbarriers: dict[int, MBarrier] = {}
        self.named: dict[int, NamedBarrier] = {}
        self.unfenced_reads = False  # whether such were warned of
        self.warps: list[Warp] = []
        self.registers = registers
        self.warpgroups: dict[int, list[tuple[object, ...]]] = {}  # the wgmma that each has issued
        self.launch_dependents = False
        self.saw_refusal = False  # of a request that another cluster be cancelled
        self.stores: dict[
            tuple[object, ...], int
        ] = {}  # bulk stores by place in global memory: a digest of the data
        self.tensor_maps: dict[
            int, int
        ] = {}  # maps in global memory that it has acquired: which version of each

    def slot(self, warp: int, what: int) -> int:
        return self.cluster.slots.of_warp(self.rank * self.cluster.warps_a_cta + warp, what)

    def tensor_memory(self) -> TensorMemory:
        if self.tmem is None:
            raise EmulationError("unknown-instruction", "tensor memory exists on sm_100 and sm_103 alone")
        return self.tmem

    def mbarrier(self, offset: int, what: str) -> MBarrier:
        found = self.mbarriers.get(offset)
        if found is None:
            near = ", ".join(f"{at:#x}" for at in sorted(self.mbarriers)) or "none"
            raise EmulationError(
                "barrier",
                f"{what} at shared offset {offset:#x}, where no mbarrier is; there are {near}",
                address=offset,
            )
        return found

    def new_mbarrier(self, offset: int, count: int, by: Warp, lane: int) -> MBarrier:
        """mbarrier.init. The object's 8 bytes may not be touched as data until it is invalidated."""
        if offset % MBARRIER_BYTES:
            raise EmulationError(
                "misaligned",
                f"mbarrier.init at shared offset {offset:#x}; 8-byte alignment is required",
                address=offset,
            )
        live = self.mbarriers.get(offset)
        if live is not None and "mbarrier.init" in by.machine.tolerate and live.untouched(count):
            by.machine.warn(
                f"{by.program.kernel.name}: mbarrier.init of a live mbarrier that nobody has used (tolerated); let one "
                "thread initialise it"
            )
            return live
        if live is not None:
            raise EmulationError(
                "barrier",
                f"mbarrier.init at shared offset {offset:#x}, where a live mbarrier is; invalidate it first",
                address=offset,
            )
        name = f"mbarrier {offset:#x}" + (f" of CTA {self.rank}" if self.cluster.size > 1 else "")
        slots = self.cluster.slots
        created = MBarrier(
            name, count, slots.new_mbarrier(name), slots.new_clock(2), by.generic_slot, by.epoch, lane
        )
        self.mbarriers[offset] = created
        self.shared.hold_barrier(offset)
        return created

    def invalidate_mbarrier(self, offset: int) -> None:
        self.mbarrier(offset, "mbarrier.inval")
        del self.mbarriers[offset]
        self.shared.barrier_bytes[offset // MBARRIER_BYTES] = False

    def named_barrier(self, number: int) -> NamedBarrier:
        if not 0 <= number < 16:
            raise EmulationError("barrier", f"named barrier {number}; a CTA has barriers 0 to 15")
        if number not in self.named:
            self.named[number] = NamedBarrier(f"barrier {number}", self.cluster.slots.new_clock(2))
        return self.named[number]

    def conflict(self, found: Conflict, memory: str, address: int, doing: str) -> EmulationError:
        """The fault for an access that an earlier one races with."""
        slots = self.cluster.slots
        who = slots.describe(found.slot)
        kind = "race"
        hint = "order them with a barrier"
        if found.slot > slots.grid_dependency:
            kind = "missing-wait"
            hint = f"wait for phase {found.time - 1} of it first"
            who = f"a transfer that signals {who}"
        fault = EmulationError(
            kind,
            f"{doing} {memory} {address:#x} is not ordered after the {found.kind} of it by {who}; {hint}",
            address=address,
        )
        owner = self.tensor_memory() if memory.startswith("tensor") else self.shared
        fault.events = last_events(self, owner.shadow, found.granule)
        return fault

    def shared_read(
        self, where: Where | Region, access: Access, slot: int, time: int, lanes: Codes | None = None
    ) -> None:
        """Checks and records a read of shared memory by `slot`.

        access: who reads (LaneOrder.access or .async_access). lanes: for generic accesses and cp.async, the lane of
        each granule.
        """
        if type(where) is not Region:
            where = self.shared.shadow.region(where)
        found = self.shared.shadow.read(where, access.known, slot, time, lanes, access.ordered)
        if found is not None:
            raise self._shared_conflict(found, access, "a read of")
        bad = self.shared.shadow.first_invalid(where)
        if bad is not None:
            raise EmulationError(
                "uninitialised",
                f"a read of shared memory {bad * self.shared.granule:#x}, which nothing wrote",
                address=bad * self.shared.granule,
            )

    def shared_write(
        self, where: Where | Region, access: Access, slot: int, time: int, lanes: Codes | None = None
    ) -> None:
        """Checks and records a write to shared memory."""
        shadow = self.shared.shadow
        if type(where) is not Region:
            where = shadow.region(where)
        found = shadow.write(where, access.known, slot, time, access.clock[READY], lanes, access.ordered)
        if found is not None:
            raise self._shared_conflict(found, access, "a write to")
        if access.asynchronous and not self.unfenced_reads:
            self._look_for_unfenced_reads(where, access)

    def _look_for_unfenced_reads(self, where: Region, access: Access) -> None:
        """Warns, once a CTA, of generic reads that a write through the async proxy follows with no proxy fence.

        A barrier between them is all that many kernels have. Where its arrival overtakes the reads, which ptxas 13.4
        allows, a copy overwrites what they have yet to read: seen on an H200 in sm80/gemm_w4a16.py before it fenced.
        """
        found = self.shared.shadow.unfenced_read(where, access.known, access.fenced)
        if found is None:
            return
        self.unfenced_reads = True
        access.order.warn(
            "shared memory is written through the async proxy after reads of it through the generic proxy, ordered by "
            "barriers but with no fence.proxy.async between; put one after the reads, before the barrier: without it, "
            "reads may still be under way when the barrier is arrived at"
        )

    def _shared_conflict(self, found: Conflict, access: Access, doing: str) -> EmulationError:
        fault = self._shared_fault(found, access, doing)
        fault.events = last_events(self, self.shared.shadow, found.granule)
        return fault

    def _shared_fault(self, found: Conflict, access: Access, doing: str) -> EmulationError:
        address = found.granule * self.shared.granule
        slots = self.cluster.slots
        unfenced = access.asynchronous and found.kind == "write"
        if unfenced and access.order.knows(access.lane, found.slot, found.time, found.lane):
            return EmulationError(
                "missing-proxy-fence",
                f"{doing} shared memory {address:#x} through the async proxy; "
                f"{slots.describe(found.slot)} wrote it through the generic proxy with no "
                "fence.proxy.async between; put one after the writes, before the barrier",
                address=address,
            )
        if found.slot in (access.order.generic, access.order.copy):
            return EmulationError(
                "race",
                f"{doing} shared memory {address:#x} is not ordered after the {found.kind} of it by another lane of "
                "the same warp; put bar.warp.sync (__syncwarp) between",
                address=address,
            )
        fault = self.conflict(found, "shared memory", address, doing)
        if access.order.known_by_any(None)[READY, found.slot] >= found.time:
            fault.message += (
                "; another lane of this warp has waited for it, so bar.warp.sync behind the wait will do"
            )
        elif found.slot in slots.releases and access.clock[READY, found.slot + SOME] >= found.time:
            fault.message += "; a lane arrived for others that had not met at bar.warp.sync"
        return fault
