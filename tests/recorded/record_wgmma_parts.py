"""Records how long a warp waits for its part of a wgmma when another warp of its warpgroup comes late, on sm_90.

    python -m tests.recorded.record_wgmma_parts DIRECTORY

writes DIRECTORY/wgmma_parts.json: on what GPU, driver and CUDA version, and for each case where warp 3 is late (ahead
of its wgmma.fence, or behind it), by how many clocks, and the clocks of each warp from there to the end of its
wgmma.wait_group. Sixteen products of 64 x 256 x 16, A and B of ones; `right`: whether every sum is 16 * 16.
"""

from __future__ import annotations

import json
import pathlib
import struct
import sys

from tests.recorded.cuda_driver import Driver

N, REPEAT, THREADS = 256, 16, 128
REGISTERS = N // 2
B_BYTES = N * 32
DESCRIPTOR = 256 >> 4 << 32 | 128 >> 4 << 16  # of B without its address: K-major, no swizzle
PLACES, DELAYS = ("fence", "product"), (0, 20_000, 200_000)


def kernel(late_at: str) -> str:
    """PTX: parameters are where sums and clocks go, and the delay."""
    sums = [f"%f{i}" for i in range(REGISTERS)]
    product = (
        f"wgmma.mma_async.sync.aligned.m64n{N}k16.f32.bf16.bf16 {{{', '.join(sums)}}}, "
        "{%ones, %ones, %ones, %ones}, %b, 1, 1, 1, 0;\n"
    )
    late = """
    @!%late bra ON;
    mov.u64 %since, %clock64;
LATE:
    mov.u64 %now, %clock64;
    sub.u64 %gone, %now, %since;
    setp.lt.u64 %more, %gone, %delay;
    @%more bra LATE;
ON:
"""
    return f""".version 8.0
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 sums, .param .u64 clocks, .param .u64 delay)
{{
    .reg .b32 %t, %ones, %at, %i, %address, %warp; .reg .f32 %f<{REGISTERS}>; .reg .pred %late, %more;
    .reg .b64 %sums, %clocks, %delay, %b, %since, %now, %gone, %start, %end, %offset;
    .shared .align 1024 .b8 b[{B_BYTES}];
    mov.u32 %t, %tid.x;
    ld.param.u64 %sums, [sums]; ld.param.u64 %clocks, [clocks]; ld.param.u64 %delay, [delay];
    mov.u32 %address, b; mov.u32 %ones, 0x3f803f80; mov.u32 %i, 0;
    shl.b32 %at, %t, 2; add.u32 %at, %at, %address;
FILL:
    st.shared.u32 [%at], %ones;
    add.u32 %at, %at, {4 * THREADS}; add.u32 %i, %i, 1;
    setp.lt.u32 %more, %i, {B_BYTES // (4 * THREADS)};
    @%more bra FILL;
    fence.proxy.async;
    bar.sync 0;
    {"".join(f"mov.f32 {name}, 0f00000000;" for name in sums)}
    shr.u32 %address, %address, 4; and.b32 %address, %address, 0x3fff;
    cvt.u64.u32 %b, %address; or.b64 %b, %b, {DESCRIPTOR};
    shr.u32 %warp, %t, 5; setp.eq.u32 %late, %warp, 3;
    mov.u64 %start, %clock64;
    {late if late_at == "fence" else ""}
    wgmma.fence.sync.aligned;
    {late if late_at == "product" else ""}
    {product * REPEAT}
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mov.u64 %end, %clock64;
    sub.u64 %gone, %end, %start;
    mul.wide.u32 %offset, %t, 8; add.u64 %clocks, %clocks, %offset; st.global.u64 [%clocks], %gone;
    mul.wide.u32 %offset, %t, 4; add.u64 %sums, %sums, %offset;
    {"".join(f"st.global.f32 [%sums+{4 * THREADS * i}], {name};" for i, name in enumerate(sums))}
    ret;
}}
"""


def main() -> None:
    driver = Driver()
    sums, clocks = driver.allocate(4 * REGISTERS * THREADS), driver.allocate(8 * THREADS)
    cases = []
    for place in PLACES:
        function = driver.kernel(driver.load(kernel(place)), "kernel", 0)
        for delay in DELAYS:
            params = [struct.pack("<Q", value) for value in (sums, clocks, delay)]
            driver.launch(function, THREADS, 0, params)
            found = struct.unpack(f"<{REGISTERS * THREADS}f", driver.download(sums, 4 * REGISTERS * THREADS))
            taken = struct.unpack(f"<{THREADS}Q", driver.download(clocks, 8 * THREADS))
            cases.append(
                {"late": place, "delay": delay, "clocks": taken[::32], "right": set(found) == {16.0 * REPEAT}}
            )
    path = pathlib.Path(sys.argv[1]) / "wgmma_parts.json"
    path.write_text(json.dumps({**driver.versions(), "cases": cases}, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
