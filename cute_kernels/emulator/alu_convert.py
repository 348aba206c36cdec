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
    return f"finish_{destination}({f'saturated({text})' if saturates else text})"


def _narrow(text: str, destination: str, mode: str) -> str:
    """float64 lanes (exact, or rounded to odd) in the shorter format; bf16 stays float32."""
    if destination == "bf16":
        return f"odd_f32({text})" if mode == "rn" else f'bf16_towards(odd_f32({text}), "{mode}")'
    return f"{text}.astype({destination})" if mode == "rn" else f'narrowed({text}, {destination}, "{mode}")'


def _float_to_float(code: Code, destination: str, source: str) -> str:
    if destination == "tf32":
        return _to_tf32(code, source)
    operand = code.operands[1]
    to_integral, mode = code.one_of(*_TO_INTEGER), code.one_of(*_TO_FLOAT)
    saturates, relu, finite, flushes = (code.flag(flag) for flag in ("sat", "relu", "satfinite", "ftz"))
    if flushes and "f32" not in (source, destination):
        code.fail(".ftz is for .f32 operands")
    if (source, destination) == ("bf16", "f32") and not (to_integral or saturates or relu or flushes):
        return f"bf16_to_f32({code.bits(operand, source)}).view(u32)"  # any NaN stays the NaN it is
    number = text = code.number(operand, source)
    if flushes and source == "f32":
        text = f"flushed({text})"
    order = {"f16": 0, "bf16": 0, "f32": 1, "f64": 2}
    if to_integral:
        if source != destination:
            code.fail("integer rounding is for conversions within one type")
        text = f"np.{_TO_INTEGER[to_integral]}({text})"
    elif destination != source and order[destination] <= order[source]:
        if not mode:
            code.fail(f"a rounding is required (.{', .'.join(_TO_FLOAT)})")
        text = _rounded(text, destination, source, mode)
    elif destination != source and (source, destination) != ("bf16", "f32"):
        text = f"{text}.astype({destination})"
    if relu:
        text = f"rectified({text})"
    if finite:
        code.only(destination, "f16 bf16")
        return f'finish_finite({text}, "{destination}")'
    if flushes and destination == "f32":
        text = f"flushed({text})"
    if saturates:
        text = f"saturated({text})"
    if destination == source == "f64":
        return f"finish_f64({text}, {number})"
    text = f"finish_{destination}({text})"
    if "f64" in (source, destination) and not saturates:
        text = f'with_payload({text}, {code.bits(operand, source)}, "{destination}", "{source}")'
    return text


def _to_tf32(code: Code, source: str) -> str:
    code.only(source, "f32")
    mode, relu, finite = code.one_of("rna", "rn", "rz"), code.flag("relu"), code.flag("satfinite")
    if not mode:
        code.fail("one of .rna, .rn, .rz is required")
    bits = code.bits(code.operands[1], source)
    if mode == "rna":
        if relu:
            code.fail(".relu does not go with .rna")
        return f"to_tf32_away({bits}, {finite})"
    if relu:
        bits = f"rectified({bits}.view(f32)).view(u32)"
    return f'to_tf32({bits}, "{mode}", {finite})'


def _rounded(text: str, destination: str, source: str, mode: str) -> str:
    if source == "f64":
        return _narrow(text, destination, mode)
    if destination == "bf16":  # from f32, or from f16, which is widened first
        text = text if source == "f32" else f"{text}.astype(f32)"
        return text if mode == "rn" else f'bf16_towards({text}, "{mode}")'
    return f"{text}.astype({destination})" if mode == "rn" else f'narrowed({text}, {destination}, "{mode}")'


TRANSLATORS: dict[str, Translator] = {"cvt": cvt}
