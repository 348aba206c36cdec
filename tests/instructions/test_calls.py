"""Calls of functions in the module: with a guard, in a loop, from one another; test_nvcc.py has those of nvcc."""

from __future__ import annotations

import numpy as np
import pytest

from cute_kernels.emulator import Device
from tests.instructions.kernels import SCHEDULES

# leap(x): 3 x + 1 where x is odd; else by a branch table: 5, x / 2 or x + 100 for x mod 6 = 0, 2, 4.
PTX = """
.version 9.0
.target sm_90a
.address_size 64
.func (.param .b32 result) leap(.param .b32 given)
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .local .align 4 .b8 kept[4];
    ld.param.u32 %r0, [given];
    st.local.u32 [kept], %r0;
    and.b32 %r1, %r0, 1;
    setp.eq.u32 %p0, %r1, 1;
    mad.lo.u32 %r2, %r0, 3, 1;
    @%p0 st.param.u32 [result], %r2;
    @%p0 ret;
    rem.u32 %r3, %r0, 6;
    shr.u32 %r3, %r3, 1;
TABLE: .branchtargets ZERO, TWO, FOUR;
    brx.idx %r3, TABLE;
ZERO:
    mov.u32 %r4, 5;
    bra DONE;
TWO:
    ld.local.u32 %r4, [kept];
    shr.u32 %r4, %r4, 1;
    bra DONE;
FOUR:
    add.u32 %r4, %r0, 100;
DONE:
    st.param.u32 [result], %r4;
    ret;
}
.func (.param .b32 result) twice(.param .b32 given)
{
    .reg .b32 %r<4>;
    .param .b32 to;
    .param .b32 from;
    ld.param.u32 %r0, [given];
    st.param.u32 [to], %r0;
    call.uni (from), leap, (to);
    ld.param.u32 %r1, [from];
    st.param.u32 [to], %r1;
    call (from), leap, (to);
    ld.param.u32 %r2, [from];
    st.param.u32 [result], %r2;
    ret;
}
.visible .entry kernel(.param .u64 out)
{
    .reg .pred %p<4>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    .param .b32 to;
    .param .b32 from;
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %r0;
    mov.u32 %r2, 0;
    setp.lt.u32 %p0, %r0, 40;
LOOP:
    st.param.u32 [to], %r1;
    st.param.u32 [from], %r1;
    @!%p0 call (from), leap, (to);
    @%p0 call (from), twice, (to);
    ld.param.u32 %r1, [from];
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, 3;
    @%p1 bra LOOP;
    ld.param.u64 %rd0, [out];
    mad.wide.u32 %rd1, %r0, 4, %rd0;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""


def _leap(x: int) -> int:
    return 3 * x + 1 if x % 2 else (5, x // 2, x + 100)[x % 6 // 2]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_calls(schedule: str) -> None:
    out = np.zeros(64, np.uint32)
    device = Device("sm_90a", schedule=schedule)
    device.register(out.ctypes.data, out.nbytes)
    device.launch(PTX, "kernel", (1, 1, 1), (64, 1, 1), params=[out.ctypes.data.to_bytes(8, "little")])
    for thread, found in enumerate(out):
        value = thread
        for _ in range(6 if thread < 40 else 3):
            value = _leap(value)
        assert found == value
