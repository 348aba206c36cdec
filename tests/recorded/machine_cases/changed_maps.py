# ruff: noqa: E501 (lines of PTX)
"""Tensor maps that a kernel changes, registers of 128 bits, and registers that warps hand on."""

from __future__ import annotations

from collections.abc import Iterator

from .copies import BARRIER
from .kernel import Case
from .warps import put

WARPGROUP = 128
# f16 [8, 32, 64], rows 128 and 4096 bytes apart; the driver's numbers (kernel.py).
SPEC = (6, 3, 0, (64, 32, 8), (128, 4096), (16, 8, 4), (1, 1, 1), 0, 0, 0, 0)
# Field, ordinal where it has one, width, new value. The address is that of `in` until it is replaced.
REPLACED = (
    *((f"global_dim, {i}", "b32", value) for i, value in ((0, 56), (1, 1), (2, 0x12345678), (3, 9), (4, 77))),
    *((f"global_stride, {i}", "b64", value) for i, value in ((0, 256), (1, 1 << 38), (1, 16), (2, 8192), (3, (1 << 39) + 48))),
    *((f"box_dim, {i}", "b32", value) for i, value in ((0, 8), (1, 256), (2, 1), (4, 3))),
    *((f"element_stride, {i}", "b32", value) for i, value in ((0, 1), (1, 2), (2, 8), (3, 5))),
    *(("rank", "b32", value) for value in (0, 1, 4)),
    *(("elemtype", "b32", value) for value in range(13)),
    *(("interleave_layout", "b32", value) for value in range(3)),
    *(("swizzle_mode", "b32", value) for value in range(4)),
    *(("fill_mode", "b32", value) for value in range(2)),
)  # fmt: skip
# The map of the parameters in shared memory at %r1, by 16 lanes; lane 0 has %p1 false.
IN_SHARED = """    mov.b64 %d5, p_bytes;
    mul.wide.u32 %d6, %r0, 8;
    add.s64 %d7, %d5, %d6;
    shl.b32 %r5, %r0, 3;
    add.u32 %r5, %r5, %r1;
    setp.lt.u32 %p0, %r0, 16;
    setp.ne.u32 %p1, %r0, 0;
    @%p0 ld.param.b64 %d8, [%d7];
    @%p0 st.shared.b64 [%r5], %d8;
    bar.warp.sync -1;
"""


def replace(field: str, value: str, width: str) -> str:
    """One instruction, by lane 0."""
    name, _, ordinal = field.partition(", ")
    operands = f"[%r1], {ordinal}, {value}" if ordinal else f"[%r1], {value}"
    return f"    @!%p1 tensormap.replace.tile.{name}.shared::cta.b1024.{width} {operands};\n"


def fields() -> Iterator[Case]:
    """The half of the map that copies read, after each change; a fixed address in the place of the tensor's."""
    for field, width, value in REPLACED:
        given = str(value)
        body = IN_SHARED + "    mov.b64 %d10, 0x123456780;\n" + replace("global_address", "%d10", "b64")
        if field.startswith(("global", "box", "element_", "rank")):
            register = "%d11" if width == "b64" else "%r11"
            body += f"    mov.{width} {register}, {value};\n"
            given = register
        body += replace(field, given, width) + "    bar.warp.sync -1;\n"
        body += "    shl.b32 %r6, %r0, 2;\n    add.u32 %r6, %r6, %r1;\n    setp.lt.u32 %p2, %r0, 16;\n"
        body += "    @%p2 ld.shared.b32 %r7, [%r6];\n    @%p2 st.global.b32 [%d3], %r7;\n"
        yield Case(f"tensormap.replace {field}: {value}", body, out_words=16, tensor_map=SPEC)


def copies() -> Iterator[Case]:
    """A box of another tensor than the driver's map says, by a changed map in global memory: moved, cut, spread."""
    changes: tuple[tuple[str, str], ...] = (
        ("moved", replace("global_address", "%d9", "b64")),
        ("cut", "    mov.b32 %r11, 3;\n" + replace("global_dim, 1", "%r11", "b32")),
        ("cut inside", "    mov.b32 %r11, 5;\n" + replace("global_dim, 0", "%r11", "b32")),
        ("spread", "    mov.b64 %d11, 64;\n" + replace("global_stride, 0", "%d11", "b64")),
    )
    changes = (*changes, ("all", "".join(text for _, text in changes)))
    for name, change in changes:
        body = IN_SHARED + "    add.s64 %d9, %d1, 1536;\n" + change + "    bar.warp.sync -1;\n"
        body += "    tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%d1], [%r1], 128;\n"
        body += "    fence.proxy.tensormap::generic.acquire.gpu [%d1], 128;\n"
        body += "    mov.b32 %r20, 0x5a5a5a5a;\n    shl.b32 %r6, %r0, 2;\n    add.u32 %r6, %r6, %r1;\n    st.shared.b32 [%r6+1024], %r20;\n"
        body += "    fence.proxy.async;\n    bar.warp.sync -1;\n    @%p1 bra ISSUED;\n"
        body += (
            f"    mbarrier.init.shared.b64 [%r1+{BARRIER}], 1;\n    fence.mbarrier_init.release.cluster;\n"
        )
        body += f"    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+{BARRIER}], 128;\n    mov.b32 %r7, 0;\n"
        body += "    cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r1+1024], [%d1, {%r7, %r7}], "
        body += f"[%r1+{BARRIER}];\nISSUED:\n    bar.warp.sync -1;\n"
        body += (
            f"WAIT:\n    mbarrier.try_wait.parity.shared.b64 %p3, [%r1+{BARRIER}], 0;\n    @!%p3 bra WAIT;\n"
        )
        body += "    ld.shared.b32 %r10, [%r6+1024];\n" + put("%r10", 0)
        spec = (2, 2, 1024, (8, 4), (32,), (8, 4), (1, 1), 0, 0, 0, 0)
        yield Case(f"a copy by a map that is {name}", body, out_words=32, tensor_map=spec)


def wide() -> Iterator[Case]:
    """16 bytes through one register, and its halves exchanged."""
    body = "    shl.b32 %r5, %r3, 4;\n    add.u32 %r6, %r1, %r5;\n"
    for i in range(4):
        body += (
            f"    ld.global.b32 %r{10 + i}, [%d4+{128 * i}];\n    st.shared.b32 [%r6+{4 * i}], %r{10 + i};\n"
        )
    body += (
        "    ld.shared.b128 %q0, [%r6];\n    mov.b128 {%d10, %d11}, %q0;\n    mov.b128 %q1, {%d11, %d10};\n"
    )
    body += (
        "    mov.b128 {%d12, %d13}, %q1;\n    st.shared.b64 [%r6], %d12;\n    st.shared.b64 [%r6+8], %d13;\n"
    )
    for i in range(4):
        body += f"    ld.shared.b32 %r{20 + i}, [%r6+{4 * i}];\n" + put(f"%r{20 + i}", i)
    yield Case("b128", body, out_words=128, locals="    .reg .b128 %q<4>;\n")


def registers() -> Iterator[Case]:
    """Three warpgroups that keep their values while one gives registers and two take them, and back."""
    body = "    ld.global.b32 %r10, [%d4];\n    shr.u32 %r5, %r0, 7;\n    setp.ne.u32 %p1, %r5, 0;\n    @%p1 bra MORE;\n"
    body += "    setmaxnreg.dec.sync.aligned.u32 40;\n    add.u32 %r11, %r10, 1;\n    bra MEET;\nMORE:\n"
    body += "    setmaxnreg.inc.sync.aligned.u32 232;\n    mul.lo.u32 %r11, %r10, 3;\nMEET:\n"
    body += (
        "    bar.sync 0;\n    shfl.sync.bfly.b32 %r12, %r11, 1, 0x1f, -1;\n    add.u32 %r13, %r10, %r12;\n"
    )
    body += put("%r13", 0, 3 * WARPGROUP)
    yield Case(
        "setmaxnreg",
        body,
        out_words=3 * WARPGROUP,
        threads=3 * WARPGROUP,
        directives=f".maxntid {3 * WARPGROUP}, 1, 1\n.minnctapersm 1\n",
    )


def cases() -> Iterator[Case]:
    for make in (fields, copies, wide, registers):
        yield from make()
