"""Reads PTX text, from whatever compiler, into the values of ptx_types.

One regular expression takes one statement at a time; braces scope registers, variables and labels.
Instruction names are not interpreted here: any dotted name is read, and whoever executes it decides. What
cannot be read raises PtxError with the line and the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NoReturn

from cute_kernels.emulator import ptx_operands
from cute_kernels.emulator.ptx_declarations import Scope, read_declaration, read_parameters
from cute_kernels.emulator.ptx_types import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Location,
    Module,
    Negated,
    Operand,
    Pair,
    Param,
    PtxError,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
    Vector,
)

__all__ = [
    "Address",
    "Immediate",
    "Instruction",
    "Kernel",
    "Location",
    "Module",
    "Negated",
    "Operand",
    "Pair",
    "Param",
    "PtxError",
    "Register",
    "Sink",
    "Special",
    "Symbol",
    "Variable",
    "Vector",
    "parse",
]

_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.S)
# One statement. The order matters: a label and a directive look like the beginning of an instruction.
_STATEMENT = re.compile(
    r"""\s*(?:
      (?P<open>\{) | (?P<close>\}) | (?P<empty>;)
    | (?P<label>[A-Za-z_$%][\w$]*)\s*:(?!:)
    | \.loc\s+(?P<loc>[^\n]*)
    | \.file\s[^\n]*
    | \.pragma\s[^;]*;
    | (?P<directive>\.[^;]*);
    | (?:@\s*(?P<negated>!?)\s*(?P<guard>[\w$%]+)\s+)?
      (?P<opcode>[a-z]\w*)(?P<modifiers>(?:\.[\w:]+)*)(?P<operands>[^;]*);
    )""",
    re.X,
)
_HEADER = re.compile(
    r"""\s*(?:
      \.version\s+(?P<version>[\d.]+) | \.target\s+(?P<target>[^\n]*) | \.address_size\s+\d+
    | \.file\s[^\n]*
    | \.section\s+[.\w$]+\s*\{[^}]*\}
    | (?P<function>(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<kind>entry|func)\b)
    | \.pragma\s[^;]*; | \.alias\s[^;]*;
    | (?P<variable>\.[^;]*);
    )""",
    re.X,
)
_FILE = re.compile(r'^[ \t]*\.file\s+(\d+)\s+"([^"\n]*)"', re.M)
_LOC = re.compile(r"(\d+)\s+(\d+)(?:\s+\d+)?(?:.*?inlined_at\s+(\d+)\s+(\d+))?")
_SIGNATURE = re.compile(
    r"\s*(?P<returned>\([^)]*\))?\s*(?P<name>[\w$%]+)\s*(?P<params>\([^)]*\))?(?P<rest>[^;{]*)(?P<end>[;{])"
)
_TARGETS = re.compile(r"\s*\.branchtargets\s+([^;]*);")
_CARRYING = frozenset({"add", "sub", "mad", "addc", "subc", "madc"})
_PROTOTYPE = re.compile(r"\s*\.(?:callprototype|calltargets)\b[^;]*;")
_ATTRIBUTE = re.compile(r"\.(\w+)((?:\s*[\d,]+)*)")


def parse(text: str) -> Module:
    """Read one PTX file. Raises PtxError, with line and text, on anything that is not understood."""
    return _Reader(text).module()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = _COMMENT.sub(_blank_comment, text)
        self.line_starts = [0, *(m.end() for m in re.finditer("\n", self.text))]
        self.files = {int(number): name for number, name in _FILE.findall(text)}
        self.at = 0
        self.result = Module(version="", target="")
        self.globals = Scope(None)
        self.locations: dict[str, Location | None] = {}

    def line(self, at: int) -> int:
        return bisect_right(self.line_starts, at)

    def fail(self, what: str, at: int) -> NoReturn:
        at += len(self.text[at:]) - len(self.text[at:].lstrip())
        line = self.line(at)
        shown = self.text[at : at + 200].strip().split("\n")[0]
        raise PtxError(f"PTX line {line}: {what}: {shown!r}")

    def module(self) -> Module:
        end = len(self.text.rstrip())
        while self.at < end:
            m = _HEADER.match(self.text, self.at)
            if m is None:
                self.fail("no module-level statement that this reader knows", self.at)
            start, self.at = self.at, m.end()
            if m["version"]:
                self.result.version = m["version"]
            elif m["target"]:
                self.result.target = m["target"].split(",")[0].strip()
            elif m["function"]:
                self.function(m["kind"] == "entry")
            elif m["variable"]:
                self.declare(m["variable"], start, self.globals, None)
        return self.result

    def declare(self, text: str, at: int, scope: Scope, kernel: Kernel | None) -> None:
        """Enter one `.reg`, `.shared`, `.global`, ... statement into its scope, its kernel or the module."""
        try:
            read_declaration(text, self.line(at), scope, kernel, self.result)
        except (PtxError, ValueError, KeyError) as e:
            self.fail(str(e), at)

    def function(self, is_entry: bool) -> None:
        start = self.at
        m = _SIGNATURE.match(self.text, start)
        if m is None:
            self.fail("no function signature", start)
        self.at = m.end()
        scope = Scope(self.globals)
        kernel = Kernel(m["name"], [], is_entry)
        try:
            kernel.params = read_parameters(m["params"] or "", scope, kernel)
            kernel.returned = read_parameters(m["returned"] or "", scope, kernel)
        except (PtxError, ValueError, KeyError) as e:
            self.fail(str(e), start)
        self.attributes(kernel, m["rest"])
        self.globals.names[kernel.name] = Symbol(kernel.name)
        known = self.result.kernels if is_entry else self.result.functions
        if m["end"] == "{":
            _Body(self, kernel, scope).read()
            known[kernel.name] = kernel
        else:
            known.setdefault(kernel.name, kernel)

    def attributes(self, kernel: Kernel, text: str) -> None:
        for name, numbers in _ATTRIBUTE.findall(text):
            values = tuple(int(x) for x in re.findall(r"\d+", numbers))
            kernel.directives[name] = values
            if name in ("reqntid", "maxntid", "reqnctapercluster"):
                x, y, z = (*values, 1, 1, 1)[:3]
                setattr(kernel, "cluster" if name == "reqnctapercluster" else name, (x, y, z))

    def location(self, text: str) -> Location | None:
        """The place that a `.loc` names; line 0 stands for compiler-made code and is no place."""
        if text in self.locations:
            return self.locations[text]
        m = _LOC.match(text)
        found = None
        if m and int(m[2]):
            caller = Location(self.files.get(int(m[3]), f"file{m[3]}"), int(m[4])) if m[3] else None
            found = Location(self.files.get(int(m[1]), f"file{m[1]}"), int(m[2]), caller)
        self.locations[text] = found
        return found


class _Body:
    """Reads one function's body; `reader.at` stands after its opening brace."""

    def __init__(self, reader: _Reader, kernel: Kernel, scope: Scope) -> None:
        self.reader, self.kernel, self.scope = reader, kernel, scope
        self.branches: list[tuple[int, str, Scope, int]] = []  # instruction, label, scope, position
        self.tables: list[tuple[str, list[str], Scope, int]] = []  # name, labels, scope, position
        self.location: Location | None = None
        self.carry: Register | None = None

    def read(self) -> None:
        reader, depth, statement = self.reader, 1, _STATEMENT
        text = reader.text
        while depth:
            m = statement.match(text, reader.at)
            if m is None:
                reader.fail("no statement that this reader knows", reader.at)
            start, reader.at = reader.at, m.end()
            kind = m.lastgroup
            if kind == "operands":
                self.instruction(m)
            elif kind == "loc":
                self.location = reader.location(m["loc"])
            elif kind == "label":
                self.label(m["label"], start)
            elif kind == "directive":
                self.directive(m["directive"], start)
            elif kind == "open":
                self.scope, depth = Scope(self.scope), depth + 1
            elif kind == "close":
                assert self.scope.parent is not None
                depth -= 1
                self.scope = self.scope.parent if depth else self.scope
        self.resolve()

    def instruction(self, m: re.Match[str]) -> None:
        reader, kernel = self.reader, self.kernel
        opcode, operands = m["opcode"], m["operands"]
        at = m.start("opcode")
        try:
            guard = self.guard(m["guard"]) if m["guard"] else None
            if opcode == "bra":
                self.branches.append((len(kernel.instructions), operands.strip(), self.scope, at))
                values: tuple[Operand, ...] = ()
            else:
                values = ptx_operands.read(operands, self.scope, kernel)
        except PtxError as e:
            reader.fail(str(e), at)
        modifiers = tuple(m["modifiers"][1:].split(".")) if m["modifiers"] else ()
        if opcode in _CARRYING and (opcode[-1] == "c" or "cc" in modifiers):
            values += (self.condition_code(),)
        kernel.instructions.append(
            Instruction(
                opcode=opcode,
                modifiers=modifiers,
                operands=values,
                guard=guard,
                guard_negated=m["negated"] == "!",
                target=None,
                location=self.location,
                ptx_line=reader.line(at),
                text=m.group().strip(),
            )
        )

    def condition_code(self) -> Register:
        """The hidden predicate that add.cc, addc, ... pass the carry in; it stands last among their operands."""
        if self.carry is None:
            self.kernel.registers.append("pred")
            self.kernel.register_names.append("CC.CF")
            self.carry = Register(len(self.kernel.registers) - 1, "pred")
        return self.carry

    def guard(self, name: str) -> Register:
        guard = self.scope.lookup(name, self.kernel)
        if not isinstance(guard, Register) or guard.type != "pred":
            raise PtxError(f"guard {name!r} is no predicate register")
        return guard

    def label(self, name: str, at: int) -> None:
        tables = _TARGETS.match(self.reader.text, self.reader.at)
        if tables:
            self.reader.at = tables.end()
            unique = name if name not in self.kernel.branch_targets else f"{name}#{self.reader.line(at)}"
            self.scope.names[name] = Symbol(unique)
            self.kernel.branch_targets[unique] = ()
            self.tables.append((unique, re.split(r"\s*,\s*", tables[1].strip()), self.scope, at))
            return
        prototype = _PROTOTYPE.match(self.reader.text, self.reader.at)
        if prototype:
            self.reader.at = prototype.end()
            self.scope.names[name] = Symbol(name)
            return
        if name in self.scope.labels:
            self.reader.fail(f"label {name!r} stands twice in one scope", at)
        place = len(self.kernel.instructions)
        self.scope.labels[name] = place
        unique = name if name not in self.kernel.labels else f"{name}#{self.reader.line(at)}"
        self.kernel.labels[unique] = place

    def directive(self, text: str, at: int) -> None:
        if text.startswith(".section"):
            self.reader.fail("a section inside a function", at)
        self.reader.declare(text, at, self.scope, self.kernel)

    def resolve(self) -> None:
        """Point every branch at its instruction, now that all labels are known."""
        kernel = self.kernel
        for place, label, scope, at in self.branches:
            old = kernel.instructions[place]
            kernel.instructions[place] = Instruction(
                opcode=old.opcode,
                modifiers=old.modifiers,
                operands=(Symbol(label),),
                guard=old.guard,
                guard_negated=old.guard_negated,
                target=self.target(label, scope, at),
                location=old.location,
                ptx_line=old.ptx_line,
                text=old.text,
            )
        for name, labels, scope, at in self.tables:
            kernel.branch_targets[name] = tuple(self.target(label, scope, at) for label in labels)

    def target(self, label: str, scope: Scope, at: int) -> int:
        inner: Scope | None = scope
        while inner is not None and label not in inner.labels:
            inner = inner.parent
        if inner is None:
            self.reader.fail(f"branch to {label!r}, which no enclosing scope declares", at)
        return inner.labels[label]


def _blank_comment(m: re.Match[str]) -> str:
    """Take a comment out, keeping line ends; a quoted string stays, but for its semicolons and braces."""
    found = m.group()
    if found.startswith('"'):
        return re.sub(r"[;{}]", " ", found)
    return "\n" * found.count("\n") or " "
