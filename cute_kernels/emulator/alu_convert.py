"""cvt between scalars; packed types are in alu_packed. Semantics: PTX ISA, section cvt."""

from __future__ import annotations

from cute_kernels.emulator import alu_packed
from cute_kernels.emulator.alu_code import Code, Definitions, Translator
from cute_kernels.emulator.ptx_types import TYPE_BITS

_FLOATS = ("f16", "bf16", "f32", "f64")
_INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
_TO_FLOAT = ("rn", "rz", "rm", "rp")
_TO_INTEGER = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


def cvt(code: Code) -> Definitions:
    if code.flag("pack"):
        return alu_packed.pack_integers(code)
    source = code.type()
    destination = code.type()
    if source in alu_packed.TYPES or destination in alu_packed.TYPES:
        return alu_packed.convert(code, destination, source)
    code.expect(2)
    known = (*_FLOATS, *_INTEGERS)
    if source not in known or destination not in (*known, "tf32"):
        code.fail(f"conversion from .{source} to .{destination} is not supported")
    if destination in _INTEGERS:
        text = (_float_to_integer if source in _FLOATS else _integer_to_integer)(code, destination, source)
        return code.write(code.operands[0], text, destination)
    if source in _INTEGERS:
        return code.write(code.operands[0], _integer_to_float(code, destination, source), destination)
    return code.write(code.operands[0], _float_to_float(code, destination, source), destination)


def _integer_to_integer(code: Code, destination: str, source: str) -> str:
    operand = code.operands[1]
    have, width = TYPE_BITS[source], TYPE_BITS[destination]
    if code.flag("sat"):
        return f'clamped({code.number(operand, source)}, "{destination}")'
    if width <= have:
        return code.bits(operand, destination)  # cut; the low bits do not depend on the sign
    if source[0] == "u":
        text = code.bits(operand, source)
        return text if width == 16 else f"{text}.astype(u{width})"
    text = code.signed(operand, source)
    return f"{text}.view(u16)" if width == 16 else f"{text}.astype(i{width}).view(u{width})"


def _float_to_integer(code: Code, destination: str, source: str) -> str:
    mode = code.one_of(*_TO_INTEGER)
    if not mode:
        code.fail(f"an integer rounding is required (.{', .'.join(_TO_INTEGER)})")
    text = code.number(code.operands[1], source)
    if code.flag("ftz"):
        code.only(source, "f32")
        text = f"flushed({text})"
    code.flag("sat")  # saturates in any case
    return f'to_integer(np.{_TO_INTEGER[mode]}({text}), "{destination}", {source == "f64"})'


def _integer_to_float(code: Code, destination: str, source: str) -> str:
    mode = code.one_of(*_TO_FLOAT)
    if not mode:
        code.fail(f"a rounding is required (.{', .'.join(_TO_FLOAT)})")
    if code.flag("ftz"):
        code.only(destination, "f32")  # no integer converts to a subnormal number
    text = code.number(code.operands[1], source)
    saturates = code.flag("sat")
    wide = TYPE_BITS[source] == 64
    if destination == "f64":
        text = f'wide_to_f64({text}, "{mode}")' if wide else f"{text}.astype(f64)"
    elif destination == "f32" and mode == "rn":
        text = f"{text}.astype(f32)"
    else:
        text = f"wide_to_odd({text})" if wide else f"{text}.astype(f64)"
        text = _narrow(text, destination, mode)
    return _finish(code, text, destination, saturates=saturates)


def _narrow(text: str, destination: str, mode: str) -> str:
    """float64 lanes (exact, or rounded to odd) in the shorter format; bf16 stays float32."""
    if destination == "bf16":
        return f"odd_f32({text})" if mode == "rn" else f'bf16_towards(odd_f32({text}), "{mode}")'
    return f"{text}.astype({destination})" if mode == "rn" else f'narrowed({text}, {destination}, "{mode}")'


def _finish(code: Code, text: str, destination: str, *, saturates: bool) -> str:
    if saturates:
        text = f"saturated({text})"
    return f"finish_{destination}({text})"


def _float_to_float(code: Code, destination: str, source: str) -> str:
    operand = code.operands[1]
    to_integral = code.one_of(*_TO_INTEGER)
    mode = code.one_of("rna", *_TO_FLOAT)
    saturates, relu, finite = code.flag("sat"), code.flag("relu"), code.flag("satfinite")
    flushes = code.flag("ftz")
    if flushes and "f32" not in (source, destination):
        code.fail(".ftz is for .f32 operands")
    if (source, destination) == ("bf16", "f32") and not (to_integral or saturates or relu or flushes):
        return f"bf16_to_f32({code.bits(operand, source)}).view(u32)"  # any NaN stays the NaN it is
    text = code.number(operand, source)
    if flushes and source == "f32":
        text = f"flushed({text})"
    order = {"f16": 0, "bf16": 0, "tf32": 1, "f32": 2, "f64": 3}
    if to_integral:
        if source != destination:
            code.fail("integer rounding is for conversions within one type")
        text = f"np.{_TO_INTEGER[to_integral]}({text})"
    elif destination == "tf32":
        code.only(source, "f32")
        if mode not in ("rna", "rn", "rz"):
            code.fail("one of .rna, .rn, .rz is required")
        text = f'to_tf32({text}, "{mode}")'
        if relu:
            text = f"rectified({text})"
        return f"finish_tf32({text}, {finite})"
    elif order[destination] < order[source] or (
        destination != source and order[destination] == order[source]
    ):
        if not mode:
            code.fail(f"a rounding is required (.{', .'.join(_TO_FLOAT)})")
        text = _rounded(text, destination, source, mode)
    elif destination != source:
        text = text if source == "bf16" and destination == "f32" else f"{text}.astype({destination})"
    if relu:
        text = f"rectified({text})"
    if finite:
        code.only(destination, "f16 bf16")
        return f'finish_finite({text}, "{destination}")'
    if flushes and destination == "f32":
        text = f"flushed({text})"
    return _finish(code, text, destination, saturates=saturates)


def _rounded(text: str, destination: str, source: str, mode: str) -> str:
    if source == "f64":
        return _narrow(text, destination, mode)
    if destination == "bf16":  # from f32, or from f16, which is widened first
        text = text if source == "f32" else f"{text}.astype(f32)"
        return text if mode == "rn" else f'bf16_towards({text}, "{mode}")'
    return f"{text}.astype({destination})" if mode == "rn" else f'narrowed({text}, {destination}, "{mode}")'


TRANSLATORS: dict[str, Translator] = {"cvt": cvt}
