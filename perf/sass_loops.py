"""Loops of a kernel's machine code: found by their back edges in what nvdisasm prints, named by what they hold.

A loop's header is the block through which it is entered, its back edges are the branches to the header, and its
body is what lies on the cycles between; without the back edges, the body may hold further loops. One around others of
its role is "/ outer", whatever it does besides.

Counted for a loop are the instructions that one warp passes in one turn: predicated ones included, instructions of
inner loops left out. A loop that only polls a barrier is no loop of its own: it counts as passed once. Blocks that
the assembler put behind the loop for the case that a barrier is not ready yet (they only wait) do not count.

Where a loop branches, a turn passes less than all of that. The least is what lies on the shortest way round that
passes each of the loop's tensor-core, tensor-memory and TMA instructions, and inner loops with such: what a turn costs
that has no rare case.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cute_kernels.build import sass

SECTION = re.compile(r'^\s*\.section\s+"?([^",\s]+)')
LABEL = re.compile(r"^([.$\w@]+):")
INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)(?P<rest>[^;]*)"
)
TARGET = re.compile(r"`\(([^)\s]+)")
ENDS = ("EXIT", "RET", "KILL")
JUMPS = ("BRA", "JMP", "BRX", "BRXU", "JMX", "JMXU")

UNIFORM = ("int", "move", "fp", "convert", "const")  # of the uniform datapath: counted together as "uniform"
CLASSES = (*sass.CLASSES, "LDGSTS", "uniform", "other")
IDLE = {"sync", "branch", "move", "int", "uniform", "NOP"}  # all that waiting for a barrier consists of
WORK = ("MMA", "TMEM", "TMA")  # classes that every way round is to pass
POLL = 8  # instructions that a loop which only waits has at most

# What a loop is for, by the first class or opcode of the list that it holds.
ROLES = (
    ("mma", ("MMA",)),
    ("epilogue", ("LDTM",)),
    ("tma load", ("UTMALDG", "UBLKCP")),
    ("cp.async", ("LDGSTS",)),
    ("tma store", ("UTMASTG", "UTMAREDG")),
    ("global", ("LDG/STG",)),
    ("shared", ("LDS/STS",)),
)
OTHER_ROLE = "control"


class Line(NamedTuple):
    """One instruction. guard: its predicate, "!P1", or "" where it always runs."""

    address: int
    guard: str
    opcode: str
    rest: str


@dataclass
class Block:
    """Instructions that run one after another; successors: indices of blocks."""

    lines: list[Line]
    successors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """name: unique in its kernel, e.g. "mma", "tma load", "tma load 2", "mma / outer".

    depth: number of loops around it; first, last: addresses of its counted instructions.
    counts: instructions by class. opcodes: by opcode without modifiers.
    tmem_columns: columns of tensor memory that its loads of all 32 lanes read.
    least: instructions of the shortest way round.
    """

    name: str
    depth: int
    first: int
    last: int
    counts: Counter[str]
    opcodes: Counter[str]
    tmem_columns: int
    least: int

    @property
    def instructions(self) -> int:
        return self.counts.total()

    @property
    def mma_share(self) -> float:
        """Tensor-core instructions among all of the loop."""
        return self.counts["MMA"] / self.instructions if self.instructions else 0.0


def class_of(line: Line) -> str:
    """Class of an instruction: the build's, with cp.async and the uniform datapath apart.

    What can never run is a no-op: ptxas puts such between tensor-core instructions to space them.
    """
    if line.guard in ("!PT", "!UPT"):
        return "NOP"
    if base(line) == "LDGSTS":
        return "LDGSTS"
    found = sass.class_of(line.opcode)
    return "uniform" if line.opcode.startswith("U") and found in UNIFORM else found


def blocks(text: str) -> list[Block]:
    """Basic blocks of the one kernel in a disassembly, in address order; [0] is the entry.

    Device functions in the same section have no edges to or from the kernel: a call counts as a plain instruction.
    """
    lines: list[Line] = []
    labels: dict[str, int] = {}
    code = True  # text without sections, as a test may have it, is all code
    for row in text.splitlines():
        if section := SECTION.match(row):
            code = section[1].startswith(".text")
        elif code and (match := INSTRUCTION.match(row)):
            lines.append(
                Line(int(match["address"], 16), match["guard"] or "", match["opcode"], match["rest"].strip())
            )
        elif code and (label := LABEL.match(row.strip())):
            labels[label[1]] = len(lines)

    starts = {0} | {index for index in labels.values() if index < len(lines)}
    starts |= {index + 1 for index, line in enumerate(lines) if base(line) in (*ENDS, *JUMPS)} - {len(lines)}
    ordered = sorted(starts)
    index_of = {start: index for index, start in enumerate(ordered)}
    result = [Block(lines[a:b]) for a, b in zip(ordered, [*ordered[1:], len(lines)], strict=True)]
    for index, block in enumerate(result):
        if not block.lines:
            continue
        last = block.lines[-1]
        targets = [index_of[labels[t]] for t in jump_targets(last) if labels.get(t, len(lines)) in index_of]
        falls = [index + 1] if falls_through(last) and index + 1 < len(result) else []
        block.successors = list(dict.fromkeys([*targets, *falls]))
    return result


def base(line: Line) -> str:
    return line.opcode.split(".")[0]


def jump_targets(line: Line) -> list[str]:
    """Labels that a jump may go to; for an indirect one all that nvdisasm lists in its remark."""
    if base(line) not in JUMPS:
        return []
    found = TARGET.findall(line.rest)
    return found if found else re.findall(r"\.L_x_\d+", line.rest)


def falls_through(line: Line) -> bool:
    """Whether the next instruction may follow."""
    if base(line) not in (*ENDS, *JUMPS):
        return True
    if line.guard not in ("", "PT", "UPT"):
        return True
    # A predicate before the target, BRA.U UP0, `(.L), and a branch on divergence make it conditional.
    condition = line.rest.split("`")[0].strip(" ,")
    return base(line) in ("BRA", "JMP") and (condition not in ("", "PT", "UPT") or ".DIV" in line.opcode)


def cycles(nodes: set[int], edges: dict[int, set[int]]) -> list[set[int]]:
    """Strongly connected components that hold a cycle, by their lowest node."""

    def reach(start: int, along: dict[int, set[int]]) -> set[int]:
        seen, todo = {start}, [start]
        while todo:
            for target in along[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        return seen

    ahead = {node: edges[node] & nodes for node in nodes}
    back: dict[int, set[int]] = {node: set() for node in nodes}
    for node, targets in ahead.items():
        for target in targets:
            back[target].add(node)
    found, left = [], set(nodes)
    for node in sorted(nodes):
        if node in left:
            component = reach(node, ahead) & reach(node, back)
            left -= component
            if len(component) > 1 or node in ahead[node]:
                found.append(component)
    return found


@dataclass
class Nest:
    """A loop while it is being found: its blocks, where it is entered, and the loops inside."""

    body: set[int]
    header: int
    inner: list[Nest]


def nests(body: set[int], edges: dict[int, set[int]]) -> list[Nest]:
    """Loops of a set of blocks, with the loops inside them."""
    result = []
    for component in cycles(body, edges):
        entries = {t for node, targets in edges.items() if node not in component for t in targets & component}
        header = min(entries or component)
        without = {node: targets - {header} for node, targets in edges.items()}
        result.append(Nest(component, header, nests(component, without)))
    return result


def loops(text: str) -> list[Loop]:
    """Loops of the one kernel in a disassembly (nvdisasm -c), outer ones first, without those that only poll."""
    graph = blocks(text)
    edges = {index: set(block.successors) for index, block in enumerate(graph)}
    reached, todo = {0}, [0]
    while todo:
        for target in edges[todo.pop()] - reached:
            reached.add(target)
            todo.append(target)
    alive = {index: edges[index] for index in reached}
    found: list[tuple[str, int, list[Line], int]] = []

    def visit(nest: Nest, depth: int) -> str:
        """Note a loop and those inside it; return its role, "" for one that only polls."""
        place = len(found)
        found.append(("", depth, [], 0))
        own, inner_roles = set(nest.body), []
        for inner in nest.inner:
            role = visit(inner, depth + 1)
            if role:
                inner_roles.append(role)
                own -= inner.body
        lines = hot(own, nest, graph)
        role = role_of(lines)
        if not inner_roles and polls(lines):
            del found[place]
            return ""
        if inner_roles and role in (OTHER_ROLE, *inner_roles):
            role = f"{min(inner_roles, key=rank) if role == OTHER_ROLE else role} / outer"
        found[place] = (role, depth, lines, min(len(lines), shortest(own, nest, graph)))
        return role

    for nest in nests(reached, alive):
        visit(nest, 0)
    seen: Counter[str] = Counter()
    result = []
    for role, depth, lines, least in sorted(found, key=lambda entry: entry[2][0].address):
        seen[role] += 1
        result.append(summary(role if seen[role] == 1 else f"{role} {seen[role]}", depth, lines, least))
    return result


def rank(role: str) -> int:
    """Place of a role in ROLES."""
    return next((i for i, (name, _) in enumerate(ROLES) if role.startswith(name)), len(ROLES))


def hot(own: set[int], nest: Nest, graph: list[Block]) -> list[Line]:
    """Instructions of the blocks that a turn passes: all but those behind the loop that only wait."""
    end = max(index for index in nest.body if nest.header in graph[index].successors)
    kept = [i for i in sorted(own) if nest.header <= i <= end or not idle(graph[i].lines)]
    return [line for index in kept or sorted(own) for line in graph[index].lines]


def shortest(own: set[int], nest: Nest, graph: list[Block]) -> int:
    """Instructions of a loop's own blocks on the shortest way round by all its work, and inner loops that have some.

    It passes these in the order of their addresses. All of its own, where no way does.
    """
    at, total = nest.header, len(graph[nest.header].lines) if nest.header in own else 0
    work = {i for i in own if works(graph[i])} - {nest.header}
    work |= {inner.header for inner in nest.inner if any(works(graph[i]) for i in inner.body)}
    for target in (*sorted(work - {nest.header}), nest.header):
        reached, todo = {at}, [(0, at)]
        length = None
        while todo and length is None:
            so_far, index = heapq.heappop(todo)
            reached.add(index)
            for after in set(graph[index].successors) & nest.body - (reached - {target}):
                if after == target:
                    length = so_far
                elif after != nest.header:
                    heapq.heappush(todo, (so_far + len(graph[after].lines) * (after in own), after))
        if length is None:
            return sum(len(graph[index].lines) for index in own)
        total += length + len(graph[target].lines) * (target in own and target != nest.header)
        at = target
    return total


def works(block: Block) -> bool:
    return not {class_of(line) for line in block.lines}.isdisjoint(WORK)


def idle(lines: Iterable[Line]) -> bool:
    return all(class_of(line) in IDLE for line in lines)


def polls(lines: list[Line]) -> bool:
    """Whether a loop does nothing but test a barrier, or gives the lanes of a warp their turns."""
    return idle(lines) and len(lines) <= POLL


def role_of(lines: list[Line]) -> str:
    held = {base(line) for line in lines} | {class_of(line) for line in lines}
    return next((role for role, marks in ROLES if held.intersection(marks)), OTHER_ROLE)


def summary(name: str, depth: int, lines: list[Line], least: int) -> Loop:
    loads = [line.opcode for line in lines if base(line) == "LDTM" and "16dp" not in line.opcode]
    return Loop(
        name=name,
        depth=depth,
        first=lines[0].address,
        last=lines[-1].address,
        counts=Counter(class_of(line) for line in lines),
        opcodes=Counter(base(line) for line in lines),
        tmem_columns=sum(int((re.findall(r"\.x(\d+)", opcode) or ["1"])[0]) for opcode in loads),
        least=least,
    )
