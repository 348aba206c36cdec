"""wgmma.mma_async to record: PTX of one product by a warpgroup, and the operands that both sides draw from seeds.

A case's input is shared memory and registers, its output D's registers. numpy alone, since it runs on the recording
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from tests.recorded.matrix_cases import draw

THREADS = 128
SHARED = 49_152  # bytes: A from 0 on, B from B_AT on
B_AT = 16_384
SPANS = (16, 128, 64, 32)  # bytes that a swizzling mode spans, as bits 62-63 of a descriptor spell it
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "u8": 8, "s8": 8}


@dataclass(frozen=True)
class WgmmaCase:
    """a_at: "registers" or "shared". mode: of swizzling. scale_d, negate: as the instruction takes them.

    kind: of operands, one of matrix_cases.SETS; sums of "exact" ones are equal bit for bit. steps: products along K,
    each from bytes 32 further on, the same registers of A in each.
    """

    a: str
    b: str
    d: str
    n: int
    a_at: str = "registers"
    mode: int = 1
    a_transposed: bool = False
    b_transposed: bool = False
    kind: str = "exact"
    scale_d: int = 1
    negate: tuple[bool, bool] = (False, False)
    saturate: bool = False
    steps: int = 1

    @property
    def name(self) -> str:
        return "-".join(str(part) for part in astuple(self))

    @property
    def d_registers(self) -> int:
        return self.n // (4 if self.d == "f16" else 2)


def cases() -> Iterator[WgmmaCase]:
    types = [
        ("f16", "f16", "f32"),
        ("f16", "f16", "f16"),
        ("bf16", "bf16", "f32"),
        ("tf32", "tf32", "f32"),
        ("e4m3", "e5m2", "f32"),
        ("e5m2", "e4m3", "f16"),
        ("s8", "u8", "s32"),
        ("u8", "u8", "s32"),
    ]
    for each in types:
        for a_at in ("registers", "shared"):
            yield WgmmaCase(*each, 32, a_at)
    for mode in range(4):
        for a_transposed in (False, True):
            for b_transposed in (False, True):
                yield WgmmaCase("bf16", "bf16", "f32", 64, "shared", mode, a_transposed, b_transposed)
    for mode in (0, 2, 3):
        yield WgmmaCase("e4m3", "e4m3", "f32", 48, "shared", mode)
        yield WgmmaCase("tf32", "tf32", "f32", 40, "shared", mode)
    for n in (8, 24, 96, 128, 192, 256):
        yield WgmmaCase("bf16", "bf16", "f32", n)
    yield WgmmaCase("f16", "f16", "f32", 128)
    yield WgmmaCase("s8", "s8", "s32", 80, saturate=True)
    for scale_d, negate in ((0, (False, False)), (1, (True, False)), (1, (False, True)), (0, (True, True))):
        yield WgmmaCase("bf16", "bf16", "f32", 16, scale_d=scale_d, negate=negate)
    yield WgmmaCase("f16", "f16", "f32", 128, steps=4)
    yield WgmmaCase("bf16", "bf16", "f32", 128, steps=4)
    for a, b, d in types[:6]:
        yield WgmmaCase(a, b, d, 16, kind="normal")
        yield WgmmaCase(a, b, d, 16, kind="wide", steps=2)


def case_input(
    case: WgmmaCase,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Shared memory, and registers of A [4, THREADS] and of D [d_registers, THREADS]."""
    random = np.random.default_rng(sum(map(ord, case.name)))

    def drawn(nbytes: int, name: str) -> npt.NDArray[np.uint8]:
        return draw(random, nbytes * 8 // BITS.get(name, 32), name, case.kind)

    memory = np.concatenate([drawn(B_AT, case.a), drawn(SHARED - B_AT, case.b)])
    a = drawn(4 * THREADS * 4, case.a).view(np.uint32).reshape(4, THREADS)
    d_bytes = case.d_registers * THREADS * 4
    if case.d == "s32":
        largest = 2**31 - 1 if case.saturate else 1000
        d = random.integers(-largest, largest, d_bytes // 4).astype(np.int32).view(np.uint8)
    else:
        d = drawn(d_bytes, case.d)
    return memory, a, d.view(np.uint32).reshape(case.d_registers, THREADS)


def strides(case: WgmmaCase, transposed: bool) -> tuple[int, int]:
    """Leading and stride byte offsets of an operand's descriptor."""
    span = SPANS[case.mode]
    if not transposed:
        return (128, 256) if span == 16 else (16, 8 * span)
    return (4096, 128) if span == 16 else (16 * span, 8 * span)


_KERNEL = """.version 8.7
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 input, .param .u64 output)
{{
  .reg .pred %p, %q;
  .reg .b32 %t, %v, %a, %base, %r<140>;
  .reg .b64 %in, %out, %x, %da, %db;
  .shared .align 1024 .b8 memory[{shared}];
  ld.param.u64 %in, [input];
  ld.param.u64 %out, [output];
  mov.u32 %t, %tid.x;
  mov.u32 %base, memory;
  shl.b32 %a, %t, 2;
LOAD:
  cvt.u64.u32 %x, %a;
  add.u64 %x, %x, %in;
  ld.global.b32 %v, [%x];
  add.u32 %v, %v, 0;
  {{ .reg .b32 %to; add.u32 %to, %a, %base; st.shared.b32 [%to], %v; }}
  add.u32 %a, %a, {row};
  setp.lt.u32 %p, %a, {shared};
  @%p bra LOAD;
  fence.proxy.async;
  bar.sync 0;
  mad.wide.u32 %x, %t, 4, %in;
{lines}
  ret;
}}
"""


def kernel(case: WgmmaCase) -> str:
    """PTX; `input` and `output` are global addresses of what `case_input` gives, one after another, and of D."""
    first_d, row = 4, 4 * THREADS
    lines = [f"ld.global.b32 %r{i}, [%x+{SHARED + i * row}];" for i in range(4 + case.d_registers)]
    a_text, flags = "{%r0, %r1, %r2, %r3}", []
    for register, at, transposed in (("%da", 0, case.a_transposed), ("%db", B_AT, case.b_transposed)):
        leading, stride = strides(case, transposed)
        high = case.mode << 62 | stride >> 4 << 32 | leading >> 4 << 16
        lines += [
            f"add.u32 %v, %base, {at};",
            "shr.u32 %v, %v, 4;",
            f"cvt.u64.u32 {register}, %v;",
            f"or.b64 {register}, {register}, {high:#x};",
        ]
    if case.a_at == "shared":
        a_text = "%da"
    if case.d != "s32":
        flags += ["-1" if negated else "1" for negated in case.negate]
    if BITS[case.a] == 16:
        flags += [str(int(case.a_transposed))] * (case.a_at == "shared") + [str(int(case.b_transposed))]
    d_text = "{" + ", ".join(f"%r{first_d + i}" for i in range(case.d_registers)) + "}"
    shape = f"m64n{case.n}k{256 // BITS[case.a]}"
    saturate = ".satfinite" if case.saturate else ""
    form = f"wgmma.mma_async.sync.aligned.{shape}{saturate}.{case.d}.{case.a}.{case.b}"
    lines += [f"setp.ne.u32 %q, {case.scale_d}, 0;", "wgmma.fence.sync.aligned;"]
    for step in range(case.steps):
        lines += ["add.u64 %da, %da, 2;", "add.u64 %db, %db, 2;"] if step else []
        lines.append(f"{form} {d_text}, {a_text}, %db, {', '.join(['%q', *flags])};")
    lines += ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"]
    lines.append("mad.wide.u32 %x, %t, 4, %out;")
    lines += [f"st.global.b32 [%x+{i * row}], %r{first_d + i};" for i in range(case.d_registers)]
    return _KERNEL.format(shared=SHARED, row=row, lines="\n".join(f"  {line}" for line in lines))
