"""Reads the operand list of one PTX instruction."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from cute_kernels.emulator.ptx_types import (
    Address,
    Immediate,
    Kernel,
    Negated,
    Operand,
    Pair,
    PtxError,
    Sink,
    Symbol,
    Vector,
)

if TYPE_CHECKING:
    from cute_kernels.emulator.ptx_declarations import Scope

_EXPRESSION = re.compile(r"(?:[\s()&|^~+\-*/<>]|\b(?:0[xX][0-9a-fA-F]+|\d+)[uU]?\b)+")
# One operand up to its comma: a vector, an address, a call's list or plain text, or a pair of them.
_LIST = r"\((?:[^()]|\([^()]*\))*\)"
_OPERAND = re.compile(
    rf"\s*((?:[^,{{}}\[\]()]*(?:\{{[^{{}}]*\}}|\[[^\[\]]*\]|{_LIST}))*[^,{{}}\[\]()]*)(?:,|$)"
)
_ADDRESS = re.compile(r"\[\s*([^\s+,\-\]]+)\s*(?:([+-])\s*(-?)\s*(\w+))?\s*(?:,(.*))?\]", re.S)
_NAME = re.compile(r"[A-Za-z_$%][\w$.]*")
_NUMBER = re.compile(
    r"[+-]?(?:0[fFdD][0-9a-fA-F]+|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|\d+U?|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
)
_SYMBOL_OFFSET = re.compile(r"([A-Za-z_$][\w$]*)\s*([+-])\s*(\w+)")
_SINK = Sink()
_UNARY: dict[type[ast.unaryop], Callable[[int], int]] = {ast.USub: operator.neg, ast.Invert: operator.invert}
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),  # as C does
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}


def read(text: str, scope: Scope, kernel: Kernel) -> tuple[Operand, ...]:
    """The operands of one instruction, names resolved in `scope`. Raises PtxError on any other text."""
    cache = scope.operands
    found: list[Operand] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        m = _OPERAND.match(text, at)
        if m is None:
            raise PtxError(f"operand list {text.strip()!r} is not understood from {text[at:].strip()!r} on")
        at = m.end()
        word = m[1]
        operand = cache.get(word)
        if operand is None:
            operand = cache[word] = _operand(word.strip(), scope, kernel)
        found.append(operand)
    return tuple(found)


def _operand(text: str, scope: Scope, kernel: Kernel) -> Operand:
    if not text:
        raise PtxError("an operand is empty")
    if text[0] == "[":
        return _address(text, scope, kernel)
    if text[0] == "{" and text[-1] == "}" and "|" not in text:
        return Vector(read(text[1:-1], scope, kernel))
    if _EXPRESSION.fullmatch(text) and not _NUMBER.fullmatch(text.replace(" ", "")):
        return Immediate(str(_constant(text)))
    if text[0] == "(" and text[-1] == ")":
        return Vector(read(text[1:-1], scope, kernel))
    if "|" in text:
        first, second = text.split("|")
        return Pair(_operand(first.strip(), scope, kernel), _operand(second.strip(), scope, kernel))
    if text == "_":
        return _SINK
    if text[0] == "!":
        return Negated(_operand(text[1:].strip(), scope, kernel))
    if _NAME.fullmatch(text):
        return scope.lookup(text, kernel)
    text = text.replace(" ", "")
    if _NUMBER.fullmatch(text):
        return Immediate(text)
    m = _SYMBOL_OFFSET.fullmatch(text)
    if m:
        symbol = scope.lookup(m[1], kernel)
        if isinstance(symbol, Symbol):
            return Symbol(symbol.name, Immediate(m[2] + m[3]).integer())
    raise PtxError(f"operand {text!r} is not understood")


def _constant(text: str) -> int:
    """The value of a constant expression of integers, such as `(0xf0 & 0xcc) ^ 0xaa`."""
    try:
        return _fold(ast.parse(re.sub(r"(?<=[0-9a-fA-F])[uU]\b", "", text).strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        raise PtxError(f"constant expression {text!r} is not understood") from None


def _fold(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_fold(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_fold(node.left), _fold(node.right))
    raise PtxError(f"constant expression {ast.unparse(node)!r} is not understood")


def _address(text: str, scope: Scope, kernel: Kernel) -> Address:
    m = _ADDRESS.fullmatch(text)
    if m is None:
        raise PtxError(f"address {text!r} is not understood")
    base = _operand(m[1], scope, kernel)
    offset = 0
    if m[2]:
        offset = Immediate(m[3] + m[4]).integer() * (-1 if m[2] == "-" else 1)
    if isinstance(base, Symbol) and base.offset:
        base, offset = Symbol(base.name), offset + base.offset
    if isinstance(base, Vector | Address | Pair | Negated | Sink):
        raise PtxError(f"address {text!r} is not understood: its base is no register, symbol or number")
    more = read(m[5], scope, kernel) if m[5] else ()
    if more and isinstance(more[0], Vector):
        return Address(base, offset, more[0].items, more[1:])
    return Address(base, offset, None, more)
