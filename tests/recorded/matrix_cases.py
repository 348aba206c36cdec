"""Warp-wide matrix instructions to record: their PTX, and the operands that both sides draw from the same
seeds.

A case is one instruction by one warp. Its input is bytes: what registers hold, or rows and addresses; so is
its output. numpy alone, since it runs on the recording machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHARED = 2048  # bytes of shared memory that ldmatrix and stmatrix reach
SETS = ("exact", "normal", "wide", "any")


@dataclass(frozen=True)
class Mma:
    """registers: 32- or 64-bit ones (f64) a thread of A, of B, and of C or D."""

    text: str
    a: str
    b: str
    c: str
    registers: tuple[int, int, int]

    @property
    def width(self) -> int:
        return 8 if self.c == "f64" else 4


MMAS = [
    Mma(f"{shape}.row.col.{qualifier}{c}.{a}.{b}.{c}", a, b, c, registers)
    for shape, a, b, c, qualifier, registers in [
        ("m16n8k8", "f16", "f16", "f32", "", (2, 1, 4)),
        ("m16n8k8", "f16", "f16", "f16", "", (2, 1, 2)),
        ("m16n8k16", "f16", "f16", "f32", "", (4, 2, 4)),
        ("m16n8k16", "f16", "f16", "f16", "", (4, 2, 2)),
        ("m16n8k8", "bf16", "bf16", "f32", "", (2, 1, 4)),
        ("m16n8k16", "bf16", "bf16", "f32", "", (4, 2, 4)),
        ("m16n8k4", "tf32", "tf32", "f32", "", (2, 1, 4)),
        ("m16n8k8", "tf32", "tf32", "f32", "", (4, 2, 4)),
        ("m16n8k16", "e4m3", "e5m2", "f32", "", (2, 1, 4)),
        ("m16n8k32", "e4m3", "e4m3", "f32", "", (4, 2, 4)),
        ("m16n8k32", "e5m2", "e4m3", "f32", "", (4, 2, 4)),
        ("m16n8k32", "e4m3", "e4m3", "f16", "", (4, 2, 2)),
        ("m8n8k16", "s8", "u8", "s32", "", (1, 1, 2)),
        ("m16n8k16", "u8", "s8", "s32", "", (2, 1, 4)),
        ("m16n8k32", "s8", "s8", "s32", "satfinite.", (4, 2, 4)),
        ("m16n8k32", "u8", "u8", "s32", "", (4, 2, 4)),
        ("m8n8k32", "s4", "u4", "s32", "", (1, 1, 2)),
        ("m16n8k32", "u4", "s4", "s32", "", (2, 1, 4)),
        ("m16n8k64", "s4", "s4", "s32", "satfinite.", (4, 2, 4)),
        ("m8n8k4", "f64", "f64", "f64", "", (1, 1, 2)),
        ("m16n8k4", "f64", "f64", "f64", "", (2, 1, 4)),
        ("m16n8k8", "f64", "f64", "f64", "", (4, 2, 4)),
        ("m16n8k16", "f64", "f64", "f64", "", (8, 4, 4)),
    ]
]
LOADS = [f"m8n8.x{n}{trans}.shared.b16" for n in (1, 2, 4) for trans in ("", ".trans")]
MOVES = ["m8n8.trans.b16"]


def draw(random: np.random.Generator, count: int, name: str, kind: str) -> npt.NDArray[np.uint8]:
    """Bytes of `count` elements of a format, packed: "exact" small integers, "normal" and "wide" numbers,
    "any" codes."""
    bits = {"f64": 64, "f32": 32, "tf32": 32, "s32": 32, "f16": 16, "bf16": 16, "u4": 4, "s4": 4}.get(name, 8)
    if kind == "any" or name[0] in "us":
        return random.integers(0, 256, count * bits // 8, dtype=np.uint8)
    if kind == "exact":
        values = random.integers(-4, 5, count).astype(np.float64)
    else:
        values = random.standard_normal(count)
        if kind == "wide":
            values *= 2.0 ** random.integers(-7, 8, count)
    if name in ("e4m3", "e5m2"):
        # Truncation to the format: the exact set is representable.
        half = values.astype(np.float16).view(np.uint16)
        if name == "e5m2":
            return (half >> 8).astype(np.uint8)
        single = values.astype(np.float32)
        exponent = np.clip((single.view(np.uint32) >> 23 & 255).astype(np.int64) - 127 + 7, 0, 15)
        mantissa = single.view(np.uint32) >> 20 & 7
        codes = np.where(exponent > 0, np.minimum(exponent * 8 + mantissa, 0x7E), 0)
        return (codes | (single.view(np.uint32) >> 24 & 0x80)).astype(np.uint8)
    if name == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    dtype = {"f64": np.float64, "f32": np.float32, "tf32": np.float32, "f16": np.float16}[name]
    return values.astype(dtype).view(np.uint8)


def mma_input(mma: Mma, kind: str, seed: int) -> bytes:
    """Registers of A, of B and of C, each [32] of the instruction's width."""
    random = np.random.default_rng(seed)
    parts = []
    for name, registers in zip((mma.a, mma.b, mma.c), mma.registers, strict=True):
        elements = {"f64": 1, "f32": 1, "tf32": 1, "s32": 1, "f16": 2, "bf16": 2, "u4": 8, "s4": 8}.get(
            name, 4
        )
        parts.append(draw(random, registers * 32 * elements, name, kind).tobytes())
    return b"".join(parts)


def matrix_input(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Shared memory [SHARED], an offset for each thread (16-byte rows in no order), and 4 registers [4,
    32]."""
    random = np.random.default_rng(seed)
    memory = random.integers(0, 256, SHARED, dtype=np.uint8)
    rows = random.permutation(SHARED // 16)[:32].astype(np.uint32) * np.uint32(16)
    return memory, rows, random.integers(0, 1 << 32, (4, 32), dtype=np.uint32)


def cases() -> Iterator[tuple[str, str, int]]:
    """(opcode, modifiers, seed); the seed of mma also names its set of operands, SETS[seed % 4]."""
    for mma in MMAS:
        for seed in range(4 if mma.a not in ("u8", "s8", "u4", "s4") else 2):
            yield "mma", mma.text, seed
    for opcode, texts in (("ldmatrix", LOADS), ("stmatrix", LOADS), ("movmatrix", MOVES)):
        for text in texts:
            yield opcode, text, 0


_HEADER = ".version 8.7\n.target sm_90\n.address_size 64\n"
_BODY = """
.visible .entry kernel(.param .u64 input, .param .u64 output)
{{
  .reg .b32 %t, %v, %a, %r<40>;
  .reg .b64 %in, %out, %x, %d<40>;
  .shared .align 16 .b8 memory[{shared}];
  ld.param.u64 %in, [input];
  ld.param.u64 %out, [output];
  mov.u32 %t, %tid.x;
{lines}
  ret;
}}
"""


def kernel(opcode: str, text: str) -> str:
    """PTX of a kernel of one warp that runs one instruction: `input` and `output` are global addresses."""
    if opcode == "mma":
        mma = next(m for m in MMAS if m.text == text)
        lines = _mma_lines(mma)
    elif opcode == "movmatrix":
        lines = [*_load_register(0, 0), f"movmatrix.sync.aligned.{text} %r1, %r0;", *_store_register(1, 0)]
    else:
        count = int(text.split(".")[1][1:])
        registers = ", ".join(f"%r{i}" for i in range(count))
        lines = [
            *_copy("st.shared.b32 [%a], %v;", "ld.global.b32 %v, [%x];", "in"),
            *_load_register(4, SHARED),
        ]
        lines += ["mov.u32 %a, memory;", "add.u32 %a, %a, %r4;", "bar.sync 0;"]
        if opcode == "ldmatrix":
            lines.append(f"ldmatrix.sync.aligned.{text} {{{registers}}}, [%a];")
            lines += [line for i in range(count) for line in _store_register(i, 128 * i)]
        else:
            lines += [line for i in range(count) for line in _load_register(i, SHARED + 128 + 128 * i)]
            lines += [f"stmatrix.sync.aligned.{text} [%a], {{{registers}}};", "bar.sync 0;"]
            lines += _copy("ld.shared.b32 %v, [%a];", "st.global.b32 [%x], %v;", "out")
    return _HEADER + _BODY.format(shared=SHARED, lines="\n".join(f"  {line}" for line in lines))


def _mma_lines(mma: Mma) -> list[str]:
    letter, kind = ("%d", "b64") if mma.width == 8 else ("%r", "b32")
    lines, first, groups = [f"mad.wide.u32 %x, %t, {mma.width}, %in;"], 0, []
    for registers in mma.registers:
        names = [f"{letter}{first + i}" for i in range(registers)]
        groups.append("{" + ", ".join(names) + "}")
        lines += [f"ld.global.{kind} {n}, [%x+{(first + i) * 32 * mma.width}];" for i, n in enumerate(names)]
        first += registers
    # D takes the registers of C.
    lines.append(f"mma.sync.aligned.{mma.text} {groups[2]}, {groups[0]}, {groups[1]}, {groups[2]};")
    lines.append(f"mad.wide.u32 %x, %t, {mma.width}, %out;")
    base = first - mma.registers[2]
    return lines + [
        f"st.global.{kind} [%x+{i * 32 * mma.width}], {letter}{base + i};" for i in range(mma.registers[2])
    ]


def _load_register(register: int, offset: int) -> list[str]:
    return ["mad.wide.u32 %x, %t, 4, %in;", f"ld.global.b32 %r{register}, [%x+{offset}];"]


def _store_register(register: int, offset: int) -> list[str]:
    return ["mad.wide.u32 %x, %t, 4, %out;", f"st.global.b32 [%x+{offset}], %r{register};"]


def _copy(shared: str, global_: str, side: str) -> list[str]:
    """Copies all of shared memory from or to the first SHARED bytes of a side, 4 bytes a thread at a time."""
    lines = []
    for offset in range(0, SHARED, 128):
        lines += [f"mad.wide.u32 %x, %t, 4, %{side};", f"add.u64 %x, %x, {offset};"]
        lines += [
            "shl.b32 %a, %t, 2;",
            f"add.u32 %a, %a, {offset};",
            "mov.u32 %v, memory;",
            "add.u32 %a, %a, %v;",
        ]
        lines += [global_, shared] if side == "in" else [shared, global_]
    return lines


def case_input(opcode: str, text: str, seed: int) -> bytes:
    """The input of a case, as its kernel reads it."""
    if opcode == "mma":
        return mma_input(next(m for m in MMAS if m.text == text), SETS[seed % 4], seed)
    memory, rows, registers = matrix_input(len(opcode + text))
    if opcode == "movmatrix":
        return registers[0].tobytes()
    return memory.tobytes() + rows.tobytes() + registers.tobytes()


def output_bytes(opcode: str, text: str) -> int:
    if opcode == "mma":
        mma = next(m for m in MMAS if m.text == text)
        return mma.registers[2] * 32 * mma.width
    return (
        SHARED
        if opcode == "stmatrix"
        else 128
        if opcode == "movmatrix"
        else 128 * int(text.split(".")[1][1:])
    )
