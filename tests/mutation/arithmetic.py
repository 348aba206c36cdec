"""Mutations of what loads, computes and stores; see mutants.py for those of what synchronises."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutation.mutants import negated, synchronisation

_MASK = 2**32 - 1


def arithmetic(match: re.Match[str]) -> Iterator[tuple[str, str]]:
    """Names and replacements of one statement."""
    guard, name, rest = match["guard"] or "", match["name"], match["rest"]
    opcode = name.split(".")[0]
    head, _, last = rest.rpartition(", ")
    if opcode in ("and", "or", "xor", "lop3", "prmt", "mul", "mad", "selp", "setp") and _is_number(last):
        for changed in _bits(int(last, 0)):
            yield f"{name} with {changed:#x} for {last}", f"{guard}{name}{head}, {changed};"
    if opcode in ("shl", "shr", "setp", "add", "sub") and _is_number(last):
        yield f"{name} by {int(last, 0) + 1} for {last}", f"{guard}{name}{head}, {int(last, 0) + 1};"
    if opcode == "selp":
        target, first, second, predicate = [o.strip() for o in rest.split(",")]
        yield f"swap the choices of {name}", f"{guard}{name} {target}, {second}, {first}, {predicate};"
        if _is_number(first):
            for changed in _bits(int(first, 0)):
                text = f"{guard}{name} {target}, {changed}, {second}, {predicate};"
                yield f"{name} with {changed:#x} for {first}", text
    if opcode == "setp":
        condition = name.split(".")[1]
        other = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}[condition]
        yield f"{name} with {other}", f"{guard}{name.replace(condition, other, 1)}{rest};"
    if opcode in ("ld", "st") and "param" not in name:
        width = 1 if name.endswith("8") else 4
        moved = re.sub(
            r"\[(%rd?\d+)(\+\d+)?\]",
            lambda m: f"[{m[1]}+{int(m[2] or 0) + (16 if opcode == 'st' else width)}]",
            rest,
            count=1,
        )
        yield f"{name} further on", f"{guard}{name}{moved};"
        if opcode == "st":
            yield f"drop {name}", ""
    if opcode == "cvt" and "bf16x2" in name:
        target, high, low = [o.strip() for o in rest.split(",")]
        yield f"swap the halves of {name}", f"{guard}{name} {target}, {low}, {high};"
        yield f"{name} towards zero", f"{guard}{name.replace('.rn.', '.rz.')} {target}, {high}, {low};"
    yield from negated(guard, name, rest)


def everything(match: re.Match[str]) -> Iterator[tuple[str, str]]:
    """Those of both kinds, each change once."""
    changes = {text: what for kind in (arithmetic, synchronisation) for what, text in kind(match)}
    yield from ((what, text) for text, what in changes.items())


def inline_constants(ptx: str) -> Iterator[tuple[str, int, int, str]]:
    """Changed constants of inline assembly: what, where they begin and end, what to put there."""
    for match in re.finditer(r"mov\.b32 (\w+), (0x[0-9a-f]+);", ptx):
        for changed in _bits(int(match[2], 16)):
            yield f"{match[1]} {changed:#x} for {match[2]}", match.start(2), match.end(2), hex(changed)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?(0x[0-9a-fA-F]+|\d+)\s*", text) is not None


def _bits(value: int) -> list[int]:
    """The number without its lowest and without its highest set bit."""
    value &= _MASK
    if not value:
        return [1]
    lowest, highest = value & -value, 1 << value.bit_length() - 1
    return sorted({value ^ lowest, value ^ highest})
