"""Scopes, and the PTX statements that declare names in them: registers, variables, parameters."""

from __future__ import annotations

import re

from cute_kernels.emulator.ptx_types import (
    TYPE_BITS,
    Immediate,
    Kernel,
    Module,
    Operand,
    Param,
    PtxError,
    Register,
    Special,
    Symbol,
    Variable,
    Vector,
)

_SPECIAL = re.compile(
    r"""%(?:(?:n?tid|n?ctaid|n?clusterid|cluster_n?ctaid)\.[xyz]|laneid|n?warpid|n?smid|gridid|lanemask_[a-z]+
    |clock(?:64|_hi)?|globaltimer(?:_lo|_hi)?|cluster_n?ctarank|is_explicit_cluster|envreg\d+|pm\d(?:_64)?
    |(?:total|aggr|dynamic)_smem_size|reserved_smem_offset_\w+|current_graph_exec|(?:n?tid|n?ctaid))""",
    re.X,
)
_REGISTERS = re.compile(r"\.reg\s*(?:\.v([24])\s*)?\.(\w+)\s+(.*)", re.S)
_RANGE = re.compile(r"([A-Za-z_$%][\w$]*?)\s*<\s*(\d+)\s*>")
_NUMBERED = re.compile(r"(.*?)(0|[1-9]\d*)")
_VARIABLE = re.compile(
    r"""(?P<prefix>(?:\.(?:extern|visible|weak|common)\s*)*)
    \.(?P<space>shared(?:::cta)?|global|const|local|param)\b\s*
    (?P<attributes>(?:\.align\s+\d+\s*|\.attribute\s*\([^)]*\)\s*)*)(?P<vector>\.v[248]\s*)?\.(?P<type>\w+)\s+(?P<rest>.*)""",
    re.X | re.S,
)
_DECLARATOR = re.compile(r"(?P<name>[\w$%]+)\s*(?P<dims>(?:\[\s*\w*\s*\]\s*)*)(?:=\s*(?P<value>.*))?", re.S)
_PARAMETER = re.compile(
    r"""\.param\s*(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s*(?P<ptr>\.ptr\b(?:\s*\.(?:global|const|shared|local|param))?(?:\s*\.align\s+\d+)?)?
    \s*(?P<name>[\w$%]+)\s*(?:\[\s*(?P<count>\d*)\s*\])?""",
    re.X,
)
_ITEM = re.compile(r"\{|\}|(generic\s*\(\s*)?([+-]?[\w$.%]+)\s*\)?\s*(?:([+-])\s*(\d+))?")


class Scope:
    """The names that one pair of braces declares, and its place among them (no parent: the module)."""

    __slots__ = ("labels", "names", "operands", "parent", "ranges", "variables")

    def __init__(self, parent: Scope | None) -> None:
        self.parent = parent
        self.names: dict[str, Register | Symbol | Vector] = {}
        self.ranges: dict[str, tuple[str, int]] = {}  # prefix of `.reg .b32 %r<10>` -> (type, count)
        self.variables: dict[str, Variable] = {}
        self.labels: dict[str, int] = {}
        self.operands: dict[str, Operand] = {}  # what operand texts mean here, kept by the operand reader

    def lookup(self, name: str, kernel: Kernel) -> Register | Symbol | Vector | Special:
        """What a name means here.

        A register of a range enters the kernel's register file when it is first named, a shared variable of
        the module enters the kernel's shared memory.
        """
        numbered = _NUMBERED.fullmatch(name)
        scope: Scope | None = self
        while scope is not None:
            found = scope.names.get(name)
            if found is None and numbered and numbered[1] in scope.ranges:
                type, count = scope.ranges[numbered[1]]
                if int(numbered[2]) < count:
                    found = scope.names[name] = _new_register(kernel, name, type)
            if found is not None:
                variable = scope.variables.get(name) if scope.parent is None else None
                if variable is not None and variable.space == "shared":
                    _enter(kernel, variable)
                return found
            scope = scope.parent
        if name == "WARP_SZ" or _SPECIAL.fullmatch(name):
            return Special(name)
        raise PtxError(f"{name!r} is not declared")


def _new_register(kernel: Kernel, name: str, type: str) -> Register:
    kernel.registers.append(type)
    kernel.register_names.append(name)
    return Register(len(kernel.registers) - 1, type)


def _enter(kernel: Kernel, variable: Variable) -> None:
    """Give the kernel a variable of its own: shared, local, or the parameter space of a call."""
    if variable.space == "shared" and variable.unsized:
        kernel.dynamic_shared[variable.name] = variable.align
        return
    spaces = {"shared": kernel.shared, "local": kernel.local, "param": kernel.call_params}
    spaces[variable.space][variable.name] = (variable.nbytes, variable.align)


def read_declaration(text: str, line: int, scope: Scope, kernel: Kernel | None, module: Module) -> None:
    """Enter one `.reg`, `.shared`, `.global`, `.const`, `.local` or `.param` statement, less its semicolon.

    kernel is None at module level. Raises PtxError on what is not understood.
    """
    scope.operands.clear()  # a name may mean something else from here on
    m = _REGISTERS.fullmatch(text)
    if m:
        if kernel is None:
            raise PtxError("a register outside a function")
        _declare_registers(m[2], m[3], scope, kernel, int(m[1] or 1))
        return
    m = _VARIABLE.fullmatch(text)
    if m is None or m["type"] not in TYPE_BITS:
        raise PtxError("a declaration that this reader does not know")
    space = m["space"].split(":")[0]
    align = re.search(r"\.align\s+(\d+)", m["attributes"])
    element = TYPE_BITS[m["type"]] // 8 * (int(m["vector"].strip()[2:]) if m["vector"] else 1)
    for declarator in _declarators(m["rest"]):
        d = _DECLARATOR.fullmatch(declarator.strip())
        if d is None:
            raise PtxError(f"declarator {declarator.strip()!r} is not understood")
        unique = (
            f"{d['name']}#{line}" if kernel is not None and _taken(d["name"], kernel, module) else d["name"]
        )
        variable = _variable(
            unique,
            space,
            m["type"],
            element,
            int(align[1]) if align else element,
            d,
            ".extern" in m["prefix"],
        )
        scope.names[d["name"]] = Symbol(unique)
        scope.variables[d["name"]] = variable
        if kernel is not None and space in ("shared", "local", "param"):
            _enter(kernel, variable)
        elif kernel is None or space in ("global", "const"):
            module.variables[unique] = variable
        else:
            raise PtxError(f"a .{space} variable inside a function")


def _declarators(text: str) -> list[str]:
    """The parts between those commas that no brace encloses."""
    parts, depth, start = [], 0, 0
    for m in re.finditer("[{},]", text):
        depth += {"{": 1, "}": -1, ",": 0}[m[0]]
        if m[0] == "," and not depth:
            parts.append(text[start : m.start()])
            start = m.end()
    return [*parts, text[start:]]


def _taken(name: str, kernel: Kernel, module: Module) -> bool:
    own = (kernel.shared, kernel.dynamic_shared, kernel.local, kernel.call_params, module.variables)
    return any(name in names for names in own)


def _declare_registers(type: str, names: str, scope: Scope, kernel: Kernel, elements: int = 1) -> None:
    """Enter registers; a vector of them has its elements under its name with .x, .y, .z, .w behind."""
    if type not in TYPE_BITS:
        raise PtxError(f"registers of type .{type}")
    for name in names.split(","):
        name = name.strip()
        m = _RANGE.fullmatch(name)
        if elements > 1 and m is None:
            items = tuple(_new_register(kernel, f"{name}.{axis}", type) for axis in "xyzw"[:elements])
            scope.names.update((f"{name}.{axis}", item) for axis, item in zip("xyzw", items, strict=False))
            scope.names[name] = Vector(items)
        elif m and elements == 1:
            scope.ranges[m[1]] = (type, int(m[2]))
        elif re.fullmatch(r"[A-Za-z_$%][\w$]*", name):
            scope.names[name] = _new_register(kernel, name, type)
        else:
            raise PtxError(f"register name {name!r} is not understood")


def _variable(
    name: str, space: str, type: str, element: int, align: int, d: re.Match[str], extern: bool
) -> Variable:
    dims = [int(x, 0) if x else None for x in re.findall(r"\[\s*(\w*)\s*\]", d["dims"])]
    initial, addresses = (None, ()) if d["value"] is None else _initialiser(d["value"], type)
    unsized = bool(dims) and dims[0] is None and initial is None
    count = 1
    for dim in dims:
        count *= dim if dim is not None else (0 if initial is None else len(initial) // element)
    nbytes = element * count
    if initial is not None:
        if len(initial) > nbytes:
            raise PtxError(f"{len(initial)} bytes of initialiser for {nbytes} bytes of variable")
        initial = initial.ljust(nbytes, b"\0")
    return Variable(name, space, nbytes, align, initial, addresses, unsized, extern)


def _initialiser(text: str, type: str) -> tuple[bytes, tuple[tuple[int, int, str, int, bool], ...]]:
    """The bytes of `{1, generic(symbol)+8, ...}`, rows one after the other, and where addresses stand."""
    width = TYPE_BITS[type] // 8
    data = bytearray()
    addresses = []
    at = 0
    for m in _ITEM.finditer(text):
        if text[at : m.start()].strip(" \n\t\r,"):
            raise PtxError(f"initialiser {text[at : m.start()]!r} is not understood")
        at = m.end()
        if m[2] is None:
            continue
        if m[1] is None and re.match(r"[+-]?[\d.]", m[2]):
            data += Immediate(m[2]).value(type).to_bytes(width, "little")
        else:
            addend = int(m[4]) * (-1 if m[3] == "-" else 1) if m[4] else 0
            addresses.append((len(data), width, m[2], addend, m[1] is not None))
            data += bytes(width)
    if text[at:].strip():
        raise PtxError(f"initialiser {text[at:]!r} is not understood")
    return bytes(data), tuple(addresses)


def read_parameters(text: str, scope: Scope, kernel: Kernel) -> list[Param]:
    """The parameters in a function's parentheses, entered into its scope; `.reg` ones become registers."""
    params = []
    for item in text.strip().removeprefix("(").removesuffix(")").split(","):
        item = item.strip()
        if not item:
            continue
        registers = _REGISTERS.fullmatch(item)
        if registers:
            _declare_registers(registers[2], registers[3], scope, kernel)
            continue
        m = _PARAMETER.fullmatch(item)
        if m is None or m["type"] not in TYPE_BITS:
            raise PtxError(f"parameter {item!r} is not understood")
        element = TYPE_BITS[m["type"]] // 8
        nbytes = element if m["count"] is None else element * int(m["count"] or 0)
        align = int(m["align"]) if m["align"] else element
        params.append(Param(m["name"], nbytes, align, m["type"]))
        scope.names[m["name"]] = Symbol(m["name"])
    return params
