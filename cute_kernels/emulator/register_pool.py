"""The registers of a CTA, which setmaxnreg moves between its warps (PTX ISA, "setmaxnreg").

A CTA owns what it was launched with: so many registers a thread in each of its warps. A warp that decreases its number
gives the difference to the CTA's pool; one that increases it waits until the pool holds as much. What a warp holds when
it exits stays with it, since the ISA promises nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.sleep import Sleepers, wake

if TYPE_CHECKING:
    from cute_kernels.emulator.ptx import Kernel

REGISTER_FILE = 65536  # of an SM; no CTA has more
GRANULE = 8  # registers a thread: what hardware gives, and takes back
FEWEST, MOST = 24, 256  # that setmaxnreg takes
MOST_AT_ENTRY = 255
WARPGROUP = 4


def launch_registers(kernel: Kernel) -> int | None:
    """Registers a thread that a kernel with setmaxnreg is compiled to have at its entry; None where its directives do
    not say, and ptxas drops the instruction.

    `.maxnreg` says it, or else `.minnctapersm` CTAs of `.reqntid` or `.maxntid` threads share the registers of an SM.
    Those are split among its four parts, so warps count in fours (as in cubins of ptxas 13.4).
    """
    if "maxnreg" in kernel.directives:
        return kernel.directives["maxnreg"][0]
    threads, ctas = kernel.reqntid or kernel.maxntid, kernel.directives.get("minnctapersm", (0,))[0]
    if threads is None or not ctas:
        return None
    warps = _whole_warpgroups(-(-prod(threads) // LANES))
    return min(REGISTER_FILE // (ctas * warps * LANES) // GRANULE * GRANULE, MOST_AT_ENTRY)


def fits(registers: int, warps: int) -> bool:
    """Whether an SM has the registers of a CTA with so many a thread."""
    return _rounded(registers) * LANES * _whole_warpgroups(warps) <= REGISTER_FILE


def _rounded(registers: int) -> int:
    return -(-registers // GRANULE) * GRANULE


def _whole_warpgroups(warps: int) -> int:
    return -(-warps // WARPGROUP) * WARPGROUP


class Move(NamedTuple):
    """One setmaxnreg of one warp: what it asked for, and when, by the warp's own clock."""

    action: str  # "inc" or "dec"
    registers: int
    time: int


@dataclass
class RegisterPool:
    """Registers a thread that each warp of a CTA holds, and what is free; counts are multiples of 32 registers.

    at_entry: registers a thread at launch. None: nobody knows, so a warp is not counted until its first setmaxnreg, and
    all together have the registers of an SM.
    """

    at_entry: int | None
    warps: int
    held: list[int] = field(init=False)
    free: int = field(init=False)
    moves: list[list[Move]] = field(init=False)
    wanted: dict[int, int] = field(init=False, default_factory=dict)  # by warp that waits
    sleepers: Sleepers = field(init=False, default_factory=list)  # until registers become free

    def __post_init__(self) -> None:
        self.held = [_rounded(self.at_entry or 0)] * self.warps
        self.free = REGISTER_FILE // LANES if self.at_entry is None else 0
        self.moves = [[] for _ in range(self.warps)]

    @property
    def total(self) -> int:
        return self.free + sum(self.held)

    def group_of(self, warp: int) -> range:
        """The warps of a warp's warpgroup, as far as the CTA has them."""
        first = warp // WARPGROUP * WARPGROUP
        return range(first, min(first + WARPGROUP, self.warps))

    def move(self, warp: int, registers: int) -> bool:
        """Gives a warp so many registers a thread, if there are as many; whether that was done."""
        more = registers - self.held[warp]
        if more > self.free:
            self.wanted[warp] = registers
            return False
        self.wanted.pop(warp, None)
        self.held[warp] = registers
        self.free -= more
        if more < 0:
            wake(self.sleepers)
        return True

    def check_direction(self, warp: int, action: str, registers: int) -> None:
        """Refuses a decrease to more than the warp has, and an increase to less."""
        held = self.held[warp]
        if held and (registers > held if action == "dec" else registers < held):
            raise EmulationError(
                "registers",
                f"setmaxnreg.{action} to {registers} registers a thread by a warp that has {held}; "
                + (f"at most {held} are allowed" if action == "dec" else f"at least {held} are"),
            )

    def disagreement(self, warp: int, action: str, registers: int) -> str:
        """What the ISA leaves undefined about a warp's next setmaxnreg, given those of its warpgroup so far; or ""."""
        group, number = self.group_of(warp), len(self.moves[warp])
        if len(group) < WARPGROUP:
            return (
                f"setmaxnreg in warps {group.start} to {group.stop - 1}, which are no whole warpgroup: the CTA has "
                f"{self.warps} warps, and a warpgroup is four; launch whole ones"
            )
        for other in group:
            theirs = self.moves[other][number : number + 1]
            if theirs and theirs[0][:2] != (action, registers):
                return (
                    f"setmaxnreg.{action} to {registers} in warp {warp}, and .{theirs[0].action} to "
                    f"{theirs[0].registers} in warp {other} of the same warpgroup; all four must execute the same one"
                )
        return ""

    def left_out(self, warp: int) -> str:
        """What is wrong when a warp exits behind less setmaxnreg than others of its warpgroup; or ""."""
        number = len(self.moves[warp])
        ahead = [other for other in self.group_of(warp) if len(self.moves[other]) > number]
        if not ahead:
            return ""
        move = self.moves[ahead[0]][number]
        return (
            f"warp {warp} exits without the setmaxnreg.{move.action} to {move.registers} that warp {ahead[0]} of its "
            "warpgroup executes; all four must"
        )

    def shortage(self) -> list[str]:
        """Why warps wait for registers, with the figures, and what would do."""
        return [self._why(registers) for registers in sorted(set(self.wanted.values()))]

    def _why(self, registers: int) -> str:
        waiting = sorted(warp for warp, wanted in self.wanted.items() if wanted == registers)
        # Those that got as much already would get less, too.
        sharing = [w for w in range(self.warps) if w in waiting or self.held[w] == registers]
        others = [w for w in range(self.warps) if w not in sharing and self.moves[w]]
        rest = self.total - sum(self.held[w] for w in range(self.warps) if w not in sharing)
        most = rest // len(sharing) // GRANULE * GRANULE
        advice = [f"increase to at most {most}"] if most >= FEWEST else []
        if others:
            spare = self.total - registers * len(sharing)
            spare -= sum(self.held[w] for w in range(self.warps) if w not in sharing and w not in others)
            fewer = spare // len(others) // GRANULE * GRANULE
            advice += [f"decrease the others to at most {fewer}"] if fewer >= FEWEST else []
        had = (
            f"has the {REGISTER_FILE} of an SM, since nothing says how many it is launched with"
            if self.at_entry is None
            else f"was launched with {self.at_entry} registers a thread, {self.total * LANES} in all"
        )
        return (
            f"setmaxnreg.inc: warps {', '.join(map(str, waiting))} wait for {registers} registers a thread and have "
            f"{self.held[waiting[0]]}; {self.free * LANES} registers are free of the "
            f"{sum(registers - self.held[w] for w in waiting) * LANES} that they lack. The CTA {had}"
            + (f"; {', or '.join(advice)}" if advice else "")
        )
