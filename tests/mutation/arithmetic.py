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
    if name.startswith("cp.async.c") and (
        copy := re.fullmatch(r"(.*\[)(.*)(\],.*\[)(.*)(\], \d+)(, %r\d+)", rest)
    ):
        before, to, between, source, nbytes, inside = copy.groups()
        yield (
            f"{name} to 16 bytes further on",
            f"{guard}{name}{before}{_further(to)}{between}{source}{nbytes}{inside};",
        )
        yield (
            f"{name} of 16 bytes further on",
            f"{guard}{name}{before}{to}{between}{_further(source)}{nbytes}{inside};",
        )
        yield f"{name} wherever the tensor ends", f"{guard}{name}{before}{to}{between}{source}{nbytes};"
    if opcode == "cvt" and "bf16x2" in name:
        target, high, low = [o.strip() for o in rest.split(",")]
        yield f"swap the halves of {name}", f"{guard}{name} {target}, {low}, {high};"
        yield f"{name} towards zero", f"{guard}{name.replace('.rn.', '.rz.')} {target}, {high}, {low};"
    yield from negated(guard, name, rest)


def everything(match: re.Match[str]) -> Iterator[tuple[str, str]]:
    """Those of both kinds, each change once."""
    changes = {text: what for kind in (arithmetic, synchronisation) for what, text in kind(match)}
    yield from ((what, text) for text, what in changes.items())


def _further(address: str) -> str:
    """An address 16 bytes further on."""
    register, _, offset = address.partition("+")
    return f"{register}+{int(offset or 0) + 16}"


def inline_constants(ptx: str) -> Iterator[tuple[str, int, int, str]]:
    """Changed constants of inline assembly: what, where they begin and end, what to put there."""
    for match in re.finditer(r"mov\.b32 (\w+), (0x[0-9a-f]+);", ptx):
        for changed in _bits(int(match[2], 16)):
            yield f"{match[1]} {changed:#x} for {match[2]}", match.start(2), match.end(2), hex(changed)


def inline_products(ptx: str) -> Iterator[tuple[str, int, int, str]]:
    """Changed products of wgmma, which stand in inline assembly beside what makes their predicate."""
    for match in re.finditer(
        r"(setp\.)eq(\.b32 add, 0, 0; )(wgmma\.mma_async[^;]*, )(%rd\d+)(, add, )1, 1, 0;", ptx
    ):
        for what, at, new in (
            ("drop a product of wgmma", (3, match.end()), ""),
            ("a product of wgmma with no sums before it", (1, match.end(2)), f"{match[1]}ne{match[2]}"),
            ("negate A of wgmma", (5, match.end()), f"{match[5]}-1, 1, 0;"),
            ("negate B of wgmma", (5, match.end()), f"{match[5]}1, -1, 0;"),
            ("transpose B of wgmma", (5, match.end()), f"{match[5]}1, 1, 1;"),
        ):
            group, end = at
            yield what, match.start(group), end, new
        moved = (
            f"{{ .reg .b64 %mutant; add.s64 %mutant, {match[4]}, 2; {match[3]}%mutant{match[5]}1, 1, 0; }}"
        )
        yield "operand B of wgmma 32 bytes on", match.start(3), match.end(), moved


def inline(ptx: str) -> Iterator[tuple[str, int, int, str]]:
    """What inline assembly has of both."""
    yield from inline_constants(ptx)
    yield from inline_products(ptx)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?(0x[0-9a-fA-F]+|\d+)\s*", text) is not None


def _bits(value: int) -> list[int]:
    """The number without its lowest and without its highest set bit."""
    value &= _MASK
    if not value:
        return [1]
    lowest, highest = value & -value, 1 << value.bit_length() - 1
    return sorted({value ^ lowest, value ^ highest})
