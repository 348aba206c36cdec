"""A kernel that is not of this project on the emulator: first right, then with a mistake that a GPU might let pass.

The PTX below could come from any compiler: each thread leaves a word in shared memory and takes its neighbour's.

    python examples/emulate_your_kernel.py
"""

from __future__ import annotations

import numpy as np

from cute_kernels.emulator import Device, EmulationError

PTX = """
.version 9.0
.target sm_90a
.address_size 64
.visible .entry neighbours(.param .u64 out)
{
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    .shared .align 4 .b8 words[512];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, words;
    shl.b32 %r2, %r0, 2;
    add.u32 %r3, %r1, %r2;
    mul.lo.u32 %r4, %r0, 10;
    st.shared.u32 [%r3], %r4;
    bar.sync 0;
    xor.b32 %r5, %r2, 128;       // a word of the warp next door
    add.u32 %r5, %r5, %r1;
    ld.shared.u32 %r6, [%r5];
    ld.param.u64 %rd0, [out];
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd2, %rd0, %rd1;
    st.global.u32 [%rd2], %r6;
    ret;
}
"""
THREADS = 128


def launch(ptx: str, schedule: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Run the kernel on one CTA and return what it wrote."""
    out = np.zeros(THREADS, np.uint32)
    device = Device("sm_90a", schedule=schedule)
    device.register(out.ctypes.data, out.nbytes, "out")
    device.launch(
        ptx, "neighbours", (1, 1, 1), (THREADS, 1, 1), params=[out.ctypes.data.to_bytes(8, "little")]
    )
    return out


def main() -> None:
    expected = (np.arange(THREADS) ^ 32) * 10
    for schedule in ("eager", "lazy", "random"):
        print(f"{schedule:7s} right: {np.array_equal(launch(PTX, schedule), expected)}")
    print("\nwithout its barrier:")
    try:
        launch(PTX.replace("bar.sync 0;", ""), "eager")
    except EmulationError as fault:
        print(fault)


if __name__ == "__main__":
    main()
