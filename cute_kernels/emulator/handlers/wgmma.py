"""wgmma.mma_async, fence, commit_group and wait_group (PTX ISA 9.7.15).

Each warp of the warpgroup computes its own 16 rows. A product is computed once, some time between issue and wait: at
once ("eager"), when it is waited for ("lazy"), or by chance at one of the warp's wgmma instructions between. Until then
the registers of D hold a promise, whose use is a fault. What the ISA calls undefined is refused: registers of A or D
that change while a product is under way or that no wgmma.fence orders before it, accumulators of another shape,
operands in shared memory that are not ordered before the product or change under it, products that are never waited
for, warps of a warpgroup that go different ways.

A warp's wait covers its own part of a product alone: wgmma.wait_group waits for the groups "committed by the executing
threads". So memory that the other warps' parts read, all of B and their rows of A, is free behind a barrier of the
warpgroup. Where "wgmma" is tolerated, the wait lasts until all four parts are computed, and what the warp itself then
writes over them is a warning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import umma_operands, wgmma
from cute_kernels.emulator.clocks import PIPE
from cute_kernels.emulator.errors import EmulationError, Place
from cute_kernels.emulator.handlers.registry import handles, items, read, steps, uniform
from cute_kernels.emulator.handlers.tensor_memory import read_operand, whole_warp
from cute_kernels.emulator.ptx import Immediate, Instruction, PtxError, Register, Vector
from cute_kernels.emulator.registers import Pending
from cute_kernels.emulator.shared_chunks import Chunks, chunks_at
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program, Step

WARPS = 4  # of a warpgroup


class Product:
    """One wgmma.mma_async as a warp issued it."""

    def __init__(
        self,
        f: wgmma.WgmmaForm,
        a: Callable[[], NDArray[np.float64]],
        b: Callable[[], NDArray[np.uint8]],
        old: list[Any] | None,
        negate: bool,
        kept: list[tuple[int, Any]],
        d: list[int],
        time: int,
        place: Place,
    ) -> None:
        self.form, self.kept, self.d, self.time, self.place = f, kept, d, time, place
        self._a, self._b, self._old, self._negate = a, b, old, negate
        self._values: list[NDArray[Any]] | None = None
        self.promises = [Promise(self, i) for i in range(len(d))]

    def compute(self) -> list[NDArray[Any]]:
        """Read the operands, and multiply, unless that is done."""
        if self._values is None:
            old = self._old and [v.compute() if isinstance(v, Pending) else v for v in self._old]
            self._values = wgmma.multiply(self.form, self._a(), self._b(), old, self._negate)
            self._old = None
        return self._values


class Promise(Pending):
    """What a register of D holds until the product is waited for."""

    of: Product

    def __init__(self, product: Product, i: int) -> None:
        self.of, self._i = product, i

    def compute(self) -> NDArray[Any]:
        return self.of.compute()[self._i]


class Products:
    """What a warp has under way: products not committed, committed groups, and what its last wgmma.fence ordered."""

    def __init__(self) -> None:
        self.open: list[Product] = []
        self.groups: deque[list[Product]] = deque()
        self.times: list[int] = []  # of all that were issued
        self._fenced: set[int] = set()  # which values registers held at the last fence
        self._held: list[Any] = []  # they, so that their identities stay theirs
        self._results: dict[int, Any] = {}  # by register: the result of a product, complete

    @property
    def issued(self) -> int:
        return len(self.times)

    @property
    def under_way(self) -> list[Product]:
        """In the order in which they were issued."""
        return [product for group in (*self.groups, self.open) for product in group]

    def fence(self, registers: list[Any]) -> None:
        """Order what registers hold now before products to come."""
        self._held = registers.copy()
        self._fenced = set(map(id, self._held))

    def ordered(self, register: int, value: Any) -> bool:
        """Whether a fence orders the last change of a register before products issued now."""
        return id(value) in self._fenced or self._results.get(register) is value

    def finish(self, product: Product, registers: list[Any]) -> None:
        """Complete a product; its registers have to be as they were left."""
        for register, value in product.kept:
            if registers[register] is not value:
                raise _changed("a register of A", product)
        d, values = product.d, product.compute()
        whole = [registers[register] for register in d] == product.promises
        for i, register in enumerate(d):
            held = registers[register]
            if whole or held is product.promises[i]:
                registers[register] = self._results[register] = values[i]
            elif not isinstance(held, Promise):  # of a later product
                raise _changed("a register of D", product)


def _changed(what: str, product: Product) -> EmulationError:
    return EmulationError(
        "race", f"{what} changed while the product was under way; put wgmma.wait_group before", product.place
    )


def products_of(warp: Warp) -> Products:
    """The products of a warp, which belongs to a whole warpgroup."""
    if warp.products is None:
        if warp.machine.architecture.name != "sm_90":
            raise EmulationError("unknown-instruction", "wgmma exists on sm_90a alone")
        threads = warp.machine.shape.threads
        if (warp.index // WARPS + 1) * WARPS * 32 > threads:
            raise EmulationError(
                "divergence",
                f"warp {warp.index} of a CTA of {threads} threads is in no whole warpgroup, which wgmma needs",
            )
        warp.products = Products()
    products: Products = warp.products
    return products


@handles("wgmma.fence")
def _fence(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        products_of(warp).fence(warp.registers)

    return run


@handles("wgmma.commit_group")
def _commit(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        products = products_of(warp)
        products.groups.append(products.open)
        products.open = []
        _advance(warp, products)

    return run


@steps("wgmma.wait_group")
def _wait(instruction: Instruction, program: Program) -> Step:
    if not isinstance(instruction.operands[0], Immediate):
        raise PtxError(f"{instruction.name} with an operand that is no number")
    left = instruction.operands[0].integer()

    def run(warp: Warp, group: Group) -> Status:
        whole_warp(warp, None if group.full else group.mask, instruction.name)
        products = products_of(warp)
        pending = len(products.open) + sum(
            map(len, list(products.groups)[max(0, len(products.groups) - left) :])
        )
        if "wgmma" in warp.machine.tolerate and not _wait_together(warp, products.issued - pending):
            group.why = "the products of the other warps of its warpgroup"
            return Status.WAIT
        while len(products.groups) > left:
            for product in products.groups.popleft():
                products.finish(product, warp.registers)
                warp.order.learn(warp.cta.slot(warp.index, PIPE), product.time, None)
        warp.machine.events += 1
        return Status.NEXT

    return run


def _wait_together(warp: Warp, count: int) -> bool:
    """Computes the parts of other warps in the first `count` products of a warpgroup; False until they are issued."""
    others = [other for other in warp.cta.warps[warp.index // WARPS * WARPS :][:WARPS] if other is not warp]
    issued = [products_of(other) for other in others]
    if any(products.issued < count for products in issued):
        return False
    for other, products in zip(others, issued, strict=True):
        until = products.times[count - 1] if count else 0
        for product in products.under_way:
            if product.time <= until:
                product.compute()
        warp.order.waited_together[warp.cta.slot(other.index, PIPE)] = until
    return True


def _advance(warp: Warp, products: Products) -> None:
    """Let products be computed as the schedule says, in their order."""
    schedule = warp.machine.engine.schedule
    for product in products.under_way:
        if schedule == "lazy" or (schedule == "random" and warp.machine.rng.random() < 0.5):
            return
        product.compute()


@handles("wgmma.mma_async")
def _mma_async(instruction: Instruction, program: Program) -> Handler:
    f = wgmma.form(instruction.modifiers)
    d_operand, a_operand, b_operand, scale_operand, *numbers = instruction.operands
    d = _registers(d_operand)
    in_registers = isinstance(a_operand, Vector)
    a = _registers(a_operand) if in_registers else []
    if len(d) != f.d_registers or (in_registers and len(a) != f.a_registers):
        raise PtxError(
            f"{instruction.name} with {len(d)} registers of D and {len(a)} of A; it has "
            f"{f.d_registers} and {f.a_registers}"
        )
    if not all(isinstance(number, Immediate) for number in numbers):
        raise PtxError(f"{instruction.name} with scales or transpositions that are no numbers")
    immediates = [number.integer() for number in numbers if isinstance(number, Immediate)]
    signs, transposed = _immediates(instruction, f, in_registers, immediates)
    read_a, read_b = read(a_operand, "b64") if not in_registers else None, read(b_operand, "b64")
    scale = read(scale_operand, "pred")

    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        products, registers = products_of(warp), warp.registers
        descriptors = [uniform(of(warp), mask, "a descriptor") for of in (read_a, read_b) if of is not None]
        accumulate = bool(uniform(scale(warp), mask, "scale-d"))
        _agree(warp, products, instruction, (*descriptors, accumulate))
        access, slot, time = (
            warp.order.async_access(None),
            warp.cta.slot(warp.index, PIPE),
            warp.next_time(PIPE),
        )
        operands = []
        for descriptor, rows, mn_major, part in zip(
            reversed(descriptors),
            (f.n, wgmma.ROWS),
            reversed(transposed),
            (None, warp.index % WARPS),
            strict=False,
        ):
            chunks = _chunks(f, descriptor, rows, mn_major, part, warp.cta.shared.granule)
            read_operand(access, warp.cta, chunks, slot, time)
            operands.append(partial(_rows, warp, f, chunks, mn_major))
        if in_registers:
            kept = [(register, registers[register]) for register in a]
            for register, value in kept:
                _check_a(program, products, register, value)
            of_a = partial(wgmma.a_of_registers, f, [value for _, value in kept])
        else:
            kept, of_a = [], partial(_decoded, f, operands[1])
        old = [registers[register] for register in d]
        if not (isinstance(old[0], Promise) and old[0].of.form == f and old == old[0].of.promises):
            for register, value in zip(d, old, strict=True):
                _check_d(program, products, f, register, value, accumulate)
        place = program.place(warp, instruction)
        product = Product(
            f, of_a, operands[0], old if accumulate else None, signs[0] != signs[1], kept, d, time, place
        )
        for register, promise in zip(d, product.promises, strict=True):
            registers[register] = promise
        products.open.append(product)
        products.times.append(time)
        warp.machine.events += 1
        warp.machine.report.count("wgmma.mma_async")
        _advance(warp, products)

    return run


def _registers(operand: Any) -> list[int]:
    found = items(operand)
    if not all(isinstance(item, Register) for item in found):
        raise PtxError(f"{operand!r} is no list of registers")
    return [item.index for item in found]


def _immediates(
    instruction: Instruction, f: wgmma.WgmmaForm, in_registers: bool, numbers: list[int]
) -> tuple[list[int], list[bool]]:
    """The signs of A and B, and which of the operands in shared memory are MN-major, A first."""
    signs = [1, 1]
    if f.d_format != "s32":
        signs, numbers = numbers[:2], numbers[2:]
    count = (1 if in_registers else 2) if f.transposes else 0
    if len(numbers) != count or any(n not in (0, 1) for n in numbers) or {abs(s) for s in signs} != {1}:
        raise PtxError(f"{instruction.name}: scales are 1 or -1, and {count} transpositions 0 or 1 follow")
    return signs, [bool(n) for n in numbers] or [False] * (1 if in_registers else 2)


def _agree(warp: Warp, products: Products, instruction: Instruction, given: tuple[Any, ...]) -> None:
    """Compare a product with what the other warps of the warpgroup issue in its place."""
    log = warp.cta.warpgroups.setdefault(warp.index // WARPS, [])
    mine = (instruction.ptx_line, *given)
    if products.issued == len(log):
        log.append(mine)
    if log[products.issued] != mine:
        raise EmulationError(
            "divergence",
            f"warp {warp.index} issues its {products.issued + 1}th product with other descriptors or from another "
            "place than a warp of its warpgroup did; wgmma is issued by four warps alike",
        )


@lru_cache(maxsize=4096)
def _chunks(
    f: wgmma.WgmmaForm, descriptor: int, rows: int, mn_major: bool, part: int | None, granule: int
) -> Chunks:
    """The chunks of an operand, or of the 16 rows of it that are a warp's; granule: of the memory's shadow."""
    decoded = wgmma.decode_descriptor(descriptor)
    addresses = umma_operands.operand_chunks(decoded, rows, f.element_bits, mn_major)
    if part is not None and mn_major:  # a line is a K index, of two bytes an element
        addresses = addresses[:, 2 * part : 2 * part + 2]
    elif part is not None:
        addresses = addresses[wgmma.WARP_ROWS * part : wgmma.WARP_ROWS * (part + 1)]
    return chunks_at(addresses, granule)


def _rows(warp: Warp, f: wgmma.WgmmaForm, chunks: Chunks, mn_major: bool) -> NDArray[np.uint8]:
    return umma_operands.rows_of_chunks(chunks.gather(warp.cta), f.element_bits, mn_major)


def _decoded(f: wgmma.WgmmaForm, rows: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float64]:
    return wgmma.values(f.a_format, rows())


def _check_a(program: Program, products: Products, register: int, value: Any) -> None:
    name = program.kernel.register_names[register]
    if not isinstance(value, np.ndarray):
        raise EmulationError("uninitialised", f"{name}, of A, holds no value")
    if not products.ordered(register, value):
        raise _unfenced(name)


def _check_d(
    program: Program, products: Products, f: wgmma.WgmmaForm, register: int, value: Any, accumulate: bool
) -> None:
    name = program.kernel.register_names[register]
    if isinstance(value, Pending):
        earlier = value.of
        if not isinstance(earlier, Product) or (earlier.form.n, earlier.form.d_format) != (f.n, f.d_format):
            raise EmulationError(
                "missing-wait",
                f"{name}, of D, is the result of something under way that is no wgmma of this shape",
            )
    elif not isinstance(value, np.ndarray):
        if accumulate:
            raise EmulationError("uninitialised", f"{name}, of D, is added to and holds no value")
    elif not products.ordered(register, value):
        raise _unfenced(name)


def _unfenced(name: str) -> EmulationError:
    return EmulationError(
        "race",
        f"{name} was written, and no wgmma.fence.sync.aligned orders that before this product; put one between",
    )
