"""st.async and red.async: asynchronous stores to distributed shared memory (PTX ISA, "st.async", "red.async").

Each lane's element lands on its own time and completes its bytes on the mbarrier that it names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cute_kernels.emulator import tma_reduce
from cute_kernels.emulator.engine import Operation
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.bulk import REDUCED_AS, lanes_of
from cute_kernels.emulator.handlers.loads import check_alignment, check_shared
from cute_kernels.emulator.handlers.mbarriers import find
from cute_kernels.emulator.handlers.registry import address, handles, items, read, width_of
from cute_kernels.emulator.lanes import ONE_LANE
from cute_kernels.emulator.memory import poison
from cute_kernels.emulator.ptx import Instruction, PtxError
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program


@handles("st.async", "red.async")
def _async(instruction: Instruction, program: Program) -> Handler:
    modifiers, type = instruction.modifiers, instruction.modifiers[-1]
    if "mbarrier::complete_tx::bytes" not in modifiers or "shared::cluster" not in modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    operation, dtype = None, REDUCED_AS.get(type, type)
    if instruction.opcode == "red":
        operation = next((m for m in modifiers if m in tma_reduce.REDUCTIONS), None)
        if operation is None or dtype not in tma_reduce.REDUCTIONS[operation]:
            raise PtxError(f"the instruction {instruction.name} is not modelled")
    where, barrier_at = address(instruction.operands[0]), address(instruction.operands[2])
    sources = [read(item, type) for item in items(instruction.operands[1])]
    width = width_of(type) // 8
    nbytes = width * len(sources)

    def run(warp: Warp, mask: Mask) -> None:
        data = np.stack([source(warp) for source in sources], axis=1).view(np.uint8).reshape(-1, nbytes)
        for lane in lanes_of(mask):
            to = where(warp)[lane : lane + 1]
            check_alignment(to, nbytes, instruction.name)
            signal = int(barrier_at(warp)[lane])
            _issue(warp, lane, instruction, warp.shared_address(int(to[0])), signal, data[lane])

    def _issue(
        warp: Warp, lane: int, instruction: Instruction, to: int, signal: int, data: np.ndarray[tuple[int]]
    ) -> None:
        cta, offset = warp.cta.cluster.at_address(to)
        barrier = find(warp, signal, instruction.name, np.array([lane]))
        if warp.cta.cluster.at_address(warp.shared_address(signal))[0] is not cta:
            raise EmulationError(
                "barrier",
                f"{instruction.name} writes CTA rank {cta.rank} and signals a barrier of another CTA",
            )
        check_shared(cta, np.array([offset]), nbytes, instruction.name)
        granules = cta.shared.granules(offset, nbytes)
        access = warp.order.access(ONE_LANE[lane])
        target = cta.shared.bytes[offset : offset + nbytes]
        if operation is None:
            cta.shared_write(granules, access, barrier.slot, barrier.time)
            target[:] = poison(nbytes)
        else:
            cta.shared_read(granules, access, barrier.slot, barrier.time)
        barrier.start_transfer(warp.order, lane)

        def land() -> None:
            target[:] = data if operation is None else tma_reduce.reduced(operation, dtype, target, data)
            barrier.end_transfer(nbytes)
            warp.machine.events += 1

        warp.machine.events += 1
        warp.machine.report.count(f"{instruction.opcode}.async")
        place = warp.program.place(warp, instruction)
        warp.machine.engine.submit(object(), Operation(instruction.name, land, place))

    return run
