"""What the emulator reports: every fault has a kind, a place in the kernel's source, and the threads involved."""

from __future__ import annotations

from dataclasses import dataclass, field

from cute_kernels.emulator.diagnosis import HINTS, source_text


def _text(position: str) -> str:
    """The line at "file:line", "" where there is none."""
    file, _, line = position.rpartition(":")
    return source_text(file, int(line)) if file and line.isdigit() else ""


@dataclass(frozen=True)
class Place:
    """Where a fault was met: the source position of the instruction, and who executed it."""

    instruction: str = ""
    source: str = ""
    cta: tuple[int, int, int] | None = None
    warp: int | None = None
    lanes: str = ""  # those that it is of, as text: "lane 5", "lanes 0-3, 8"
    callers: tuple[str, ...] = ()  # source positions that the instruction was inlined for, innermost first
    launch: int | None = None  # which of several side by side

    @property
    def text(self) -> str:
        """The source line itself, "" where its file cannot be found."""
        return _text(self.source)

    def __str__(self) -> str:
        who = []
        if self.launch is not None:
            who.append(f"launch {self.launch}")
        if self.cta is not None:
            who.append(f"CTA {self.cta}")
        if self.warp is not None:
            who.append(f"warp {self.warp}")
        if self.lanes:
            who.append(self.lanes)
        parts = [", ".join(who), self.source, f"`{self.instruction}`" if self.instruction else ""]
        return " | ".join(part for part in parts if part)


class EmulationError(Exception):
    """A fault of the emulated program.

    `kind` names the class of the fault (one of KINDS), `place` says where and by whom, `address` is the
    shared, tensor or global memory address involved, where there is one.
    """

    def __init__(
        self, kind: str, message: str, place: Place | None = None, address: int | None = None
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a kind of fault; add it to KINDS")
        self.kind = kind
        self.message = message
        self.place = place or Place()
        self.address = address
        self.hints: list[str] = [HINTS[kind]] if kind in HINTS else []  # likely causes
        self.events: list[str] = []  # the last events at the address, oldest first
        self.barriers: list[str] = []  # the barriers of the cluster
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"[{self.kind}] {self.message}"]
        if str(self.place):
            lines.append(f"  at {self.place}")
        if self.place.text:
            lines.append(f"    > {self.place.text}")
        for caller in self.place.callers:
            lines.append(f"  called at {caller}")
            lines += [f"    > {text}"] if (text := _text(caller)) else []
        for title, entries in (
            ("likely cause", self.hints),
            ("last events there", self.events),
            ("barriers", self.barriers),
        ):
            lines += [f"  {title}:", *(f"    {entry}" for entry in entries)] if entries else []
        return "\n".join(lines)

    def explain(self, hints: list[str], barriers: list[str]) -> None:
        """Adds likely causes and the state of the barriers to the report."""
        self.hints += hints
        self.barriers = self.barriers or barriers
        self.args = (str(self),)

    def located(self, place: Place) -> EmulationError:
        """The same fault with a place, if it has none yet."""
        if not str(self.place):
            self.place = place
            self.args = (str(self),)
        return self


KINDS: dict[str, str] = {
    "unknown-instruction": "an instruction or a form of one that the emulator does not model",
    "bad-launch": "the launch disagrees with what the kernel or the architecture allows",
    "out-of-range": "an access outside registered global memory, shared memory or tensor memory",
    "misaligned": "an access whose address is not a multiple of what the instruction requires",
    "uninitialised": "a read of a register, shared memory or tensor memory that nothing wrote",
    "race": "two accesses of which neither is ordered before the other, at least one a write",
    "missing-wait": "the result of an asynchronous operation used before the wait that makes it valid",
    "missing-proxy-fence": "generic writes that the async proxy touches with no proxy fence between",
    "missing-tcgen05-fence": "tensor memory handed over between threads with no tcgen05 fence",
    "barrier": "an mbarrier or a named barrier used in a way that its state does not allow",
    "transaction-count": "transaction bytes that do not balance",
    "deadlock": "every warp waits and nothing is in flight",
    "descriptor": "an instruction, matrix or tensor-map descriptor that the ISA does not allow",
    "tensor-memory": "tensor memory allocated, used or given back wrongly",
    "divergence": "a warp-wide instruction executed by a part of the warp",
    "unfinished": "a CTA ended with asynchronous work that still uses its memory",
    "registers": "setmaxnreg used in a way that the ISA leaves undefined",
    "launch-control": "clusterlaunchcontrol used in a way that the ISA leaves undefined",
    "step-limit": "the kernel executed more instructions than the limit allows",
}


@dataclass
class Report:
    """What a launch did. A launch that met a fault raises EmulationError instead of returning one.

    `instructions` counts warp instructions executed, `operations` the asynchronous operations by name,
    `warnings` are findings that are legal but worth a look.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    schedule: str
    seed: int
    instructions: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def count(self, operation: str) -> None:
        self.operations[operation] = self.operations.get(operation, 0) + 1
