"""The .f32x2 instructions of sm_100: each half as the .f32 instruction, which is compared with an H200."""

from __future__ import annotations

import numpy as np
import pytest

from tests.instructions.kernels import run

SPECIAL = (
    0,
    1 << 31,
    1,
    0x80000001,
    0x007FFFFF,
    0x00800000,
    0x7F7FFFFF,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    0x7F800001,
)


@pytest.mark.parametrize(
    "name", ["add.rn", "add.rz", "add.rn.ftz", "mul.rn", "mul.rm", "fma.rn", "fma.rp.ftz", "sub.rn"]
)
def test_halves(name: str) -> None:
    rng = np.random.default_rng(7)
    words = rng.normal(size=(3, 64)).astype(np.float32).view(np.uint32)
    chosen = rng.random(words.shape) < 0.5
    words[chosen] = rng.choice(np.array(SPECIAL, np.uint32), int(chosen.sum()))
    sources = 3 if name.startswith("fma") else 2
    body = "shl.b32 %r5, %r0, 3;\n cvt.u64.u32 %d5, %r5;\n add.s64 %d6, %d1, %d5;\n add.s64 %d7, %d0, %d5;\n"
    for i in range(sources):
        body += (
            f"ld.global.b64 %d{10 + i}, [%d6+{256 * i}];\n mov.b64 {{%r{20 + i}, %r{30 + i}}}, %d{10 + i};\n"
        )
    pairs = ", ".join(f"%d{10 + i}" for i in range(sources))
    low, high = (", ".join(f"%r{at + i}" for i in range(sources)) for at in (20, 30))
    body += f"{name}.f32x2 %d20, {pairs};\n {name}.f32 %r40, {low};\n {name}.f32 %r41, {high};\n"
    body += "mov.b64 %d21, {%r40, %r41};\n st.global.b64 [%d7], %d20;\n st.global.b64 [%d7+256], %d21;\n"
    out, _ = run(body, source=words.ravel(), out_words=128)
    assert (out[:64] == out[64:]).all()
    assert len(np.unique(out[:64])) > 20
