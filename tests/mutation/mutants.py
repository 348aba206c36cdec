"""Single changes to a kernel's PTX, each of which a good checker should notice.

The set: drop one fence, wait, arrival, commit, barrier or other synchronising instruction; let a wait pass; relax one
acquire or release of global memory; change one byte count, arrival count, parity, small bound (a ring's length, a
warp's number), bulk group count, descriptor field, coordinate or barrier address; negate one predicate. For kernels
without any of that, and beside it for those that compute addresses and values themselves (`arithmetic`): change one
immediate of an integer, logic or selecting instruction, one address, one constant of inline assembly; negate one
predicate. Mutants are made from the text, so that each is a program in its own right.
"""

from __future__ import annotations

import ast
import bisect
import functools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[2]  # what the paths in the PTX count from
DROPPED = (
    "fence",
    "membar",
    "tcgen05.fence",
    "tcgen05.wait",
    "tcgen05.commit",
    "tcgen05.dealloc",
    "tcgen05.cp",
    "tcgen05.mma",
    "tcgen05.relinquish_alloc_permit",
    "tcgen05.st",
    "mbarrier.init",
    "mbarrier.arrive",
    "mbarrier.expect_tx",
    "bar",
    "barrier",
    "griddepcontrol",
    "cp.async",
    "cp.reduce",
    "wgmma.fence",
    "wgmma.commit_group",
    "wgmma.wait_group",
    "setmaxnreg",
    "st.shared",
    "st.global",
    "st.release",
    "stmatrix",
    "red",
    "atom",
)
_NEVER_DROPPED = ("cp.async.bulk.prefetch",)
# One statement a line, as compilers write them; .loc and other directives begin with a dot.
_STATEMENT = re.compile(
    r"^[ \t]*(?P<guard>@!?%p\d+[ \t]+)?(?P<name>[a-z][\w.:]*)(?P<rest>[^;{}\n]*(?:\{[^{}\n]*\}[^;{}\n]*)*);",
    re.M,
)


@dataclass(frozen=True)
class Mutant:
    """One change.

    what it is; line: of the PTX; source: file and line that it stands for; place: file and function; nth of `count`
    mutants with the same what and place; start, end: of what is replaced in the module's text; new: by what.
    """

    what: str
    line: int
    source: str
    place: str
    nth: int
    count: int
    start: int
    end: int
    new: str

    def of(self, ptx: str) -> str:
        """The changed module."""
        return ptx[: self.start] + self.new + ptx[self.end :]


Changes = Callable[[re.Match[str]], Iterator[tuple[str, str]]]
Others = Callable[[str], Iterator[tuple[str, int, int, str]]]  # what, start and end in the text, replacement


def mutants(ptx: str, changes: Changes, others: Others | None = None) -> list[Mutant]:
    """Every mutant of a module's text.

    changes: names and replacements of a statement. others: of further spans of the text.
    """
    body = ptx.index("{", ptx.index(".entry"))
    spans = [
        (what, match.start("guard") if match["guard"] else match.start("name"), match.end(), new)
        for match in _STATEMENT.finditer(ptx, body)
        for what, new in changes(match)
    ]
    spans += others(ptx) if others else []
    sources, found = Sources(ptx), []
    for what, start, end, new in spans:
        path, number = sources.of(start)
        place = f"{path.name}:{_function(path, number)}"
        found.append((what, f"{path.name}:{number}", place, start, end, new))
    total = Counter((what, place) for what, _, place, *_ in found)
    seen: Counter[tuple[str, str]] = Counter()
    result = []
    for what, source, place, start, end, new in found:
        seen[what, place] += 1
        line = ptx.count("\n", 0, start) + 1
        result.append(
            Mutant(what, line, source, place, seen[what, place], total[what, place], start, end, new)
        )
    return result


def synchronisation(match: re.Match[str]) -> Iterator[tuple[str, str]]:
    """Names and replacements of one statement of a kernel that synchronises and copies."""
    guard, name, rest = match["guard"] or "", match["name"], match["rest"]
    if name.startswith(DROPPED) and not name.startswith(_NEVER_DROPPED):
        yield f"drop {name}", ""
    if name.startswith("mbarrier.try_wait"):
        target, _, behind = rest.strip().partition(",")
        yield f"pass {name}", f"mov.pred {target}, -1;"
        parity = behind.split("],")[1].split(",")[0].strip()
        if ".parity" in name and parity.startswith("%"):
            before, after = rest.split("],", 1)
            flipped = after.replace(parity, "%mutant", 1)
            yield (
                f"flip the parity of {name}",
                _with("b32", f"xor.b32 %mutant, {parity}, 1", f"{name}{before}],{flipped}"),
            )
    if name.startswith(("mbarrier.arrive.expect_tx", "mbarrier.expect_tx", "mbarrier.init")):
        head, _, count = rest.rpartition(",")
        for change in (16, -16) if "expect_tx" in name else (1, -1):
            yield (
                f"{name} {change:+d}",
                _with("b32", f"add.s32 %mutant, {count}, {change}", f"{guard}{name}{head}, %mutant"),
            )
    if re.match(r"(mbarrier\.arrive|tcgen05\.commit|mbarrier\.try_wait)", name):
        moved = re.sub(r"\[(%rd?\d+)(\+\d+)?\]", lambda m: f"[{m[1]}+{int(m[2] or 0) + 8}]", rest, count=1)
        yield f"{name} on the next barrier", f"{guard}{name}{moved};"
    if "wait_group" in name:
        count = rest.strip()
        yield f"{name} {count} + 1", f"{guard}{name} {int(count) + 1};"
    if name.startswith(("cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor")):
        yield from _coordinates(guard, name, rest)
    if name.startswith("tcgen05.mma"):
        yield from _product(guard, name, rest)
    if name.startswith("tcgen05.cp"):
        yield f"{name} one column on", f"{guard}{name}{_shifted(rest, 1)};"
    if name.startswith("or.b64") and re.search(r", \d{10,}$", rest):
        head, constant = rest.rsplit(", ", 1)
        for bit in (32, 38, 61):
            yield (
                f"flip bit {bit} of a matrix descriptor",
                f"{guard}{name}{head}, {int(constant) ^ 1 << bit};",
            )
    if re.match(r"setp\.(eq|ne)\.b32", name):
        bound = rest.rsplit(", ", 1)[1].strip()
        if bound.isdigit() and 2 <= int(bound) <= 16:
            yield (
                f"compare with {int(bound) + 1} for {bound}",
                f"{guard}{name}{rest.rsplit(', ', 1)[0]}, {int(bound) + 1};",
            )
    if re.match(r"(ld|st|red|atom)\.", name) and (order := re.search(r"\.(acquire|release|acq_rel)\b", name)):
        yield f"relax {name}", f"{guard}{name.replace(order[0], '.relaxed')}{rest};"
    yield from negated(guard, name, rest)


def negated(guard: str, name: str, rest: str) -> Iterator[tuple[str, str]]:
    if guard:
        other = guard.replace("@!", "@") if guard.startswith("@!") else guard.replace("@", "@!")
        yield f"negate the guard of {name}", f"{other}{name}{rest};"


def _coordinates(guard: str, name: str, rest: str) -> Iterator[tuple[str, str]]:
    """One element further in each dimension, or 16 bytes further along the innermost."""
    inside = re.search(r"\{([^{}]*)\}", rest)
    assert inside
    coordinates = [c.strip() for c in inside[1].split(",")]
    for i, coordinate in enumerate(coordinates):
        step = 16 if i == 0 else 1
        new = ", ".join("%mutant" if j == i else c for j, c in enumerate(coordinates))
        changed = rest[: inside.start(1)] + new + rest[inside.end(1) :]
        yield (
            f"coordinate {i} of {name} + {step}",
            _with("b32", f"add.s32 %mutant, {coordinate}, {step}", f"{guard}{name}{changed}"),
        )


def _product(guard: str, name: str, rest: str) -> Iterator[tuple[str, str]]:
    operands = [o.strip() for o in rest.split(",")]
    if "block_scale" in name:
        swapped = [*operands[:4], operands[5], operands[4], *operands[6:]]
        yield "swap the scale factors of an MMA", f"{guard}{name} {', '.join(swapped)};"
        for i, which in ((4, "A"), (5, "B")):
            moved = [*operands[:i], _shifted(operands[i], 4), *operands[i + 1 :]]
            yield f"scale factors of {which} four columns on", f"{guard}{name} {', '.join(moved)};"
    for i, which in ((1, "A"), (2, "B")):
        changed = [*operands[:i], "%mutant", *operands[i + 1 :]]
        yield (
            f"operand {which} of an MMA 32 bytes on",
            _with("b64", f"add.s64 %mutant, {operands[i]}, 2", f"{guard}{name} {', '.join(changed)}"),
        )
    for bit, field in (
        (17, "N"),
        (24, "M"),
        (4, "scale id or D type"),
        (7, "A's type"),
        (10, "B's type"),
        (13, "negate A"),
    ):
        changed = [*operands[:3], "%mutant", *operands[4:]]
        yield (
            f"flip bit {bit} ({field}) of an instruction descriptor",
            _with(
                "b32", f"xor.b32 %mutant, {operands[3]}, {1 << bit}", f"{guard}{name} {', '.join(changed)}"
            ),
        )
    changed = [*operands[:-1], "%mutant"]
    yield (
        "negate whether an MMA accumulates",
        _with("pred", f"not.pred %mutant, {operands[-1]}", f"{guard}{name} {', '.join(changed)}"),
    )


def _with(type: str, computation: str, statement: str) -> str:
    """A statement that uses a fresh register %mutant, and what computes it."""
    return f"{{ .reg .{type} %mutant; {computation}; {statement}; }}"


def _shifted(text: str, columns: int) -> str:
    """The first address of a text, some columns further."""
    return re.sub(r"\[(%r\d+)(\+\d+)?\]", lambda m: f"[{m[1]}+{int(m[2] or 0) + columns}]", text, count=1)


class Sources:
    """Which line of a source file a position of a module's text stands for."""

    def __init__(self, ptx: str) -> None:
        self.files = {match[1]: ROOT / match[2] for match in re.finditer(r'\.file\s+(\d+)\s+"([^"]*)"', ptx)}
        self.lines = list(re.finditer(r"\.loc\s+(\d+)\s+(\d+)\s+[1-9]\d*", ptx))

    def of(self, at: int) -> tuple[pathlib.Path, int]:
        """File and line of the last .loc before a position that names a column."""
        before = bisect.bisect_right(self.lines, at, key=re.Match.start)
        if not before:
            return pathlib.Path("?"), 0
        last = self.lines[before - 1]
        return self.files.get(last[1], pathlib.Path("?")), int(last[2])


@functools.cache
def _functions(path: pathlib.Path) -> list[tuple[int, int, str]]:
    """First and last line and name of every function of a file, the innermost last."""
    tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return sorted((node.lineno, node.end_lineno or node.lineno, node.name) for node in nodes)


def _function(path: pathlib.Path, line: int) -> str:
    names = [name for first, last, name in _functions(path) if first <= line <= last]
    return names[-1] if names else "?"
