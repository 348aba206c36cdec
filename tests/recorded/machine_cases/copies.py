# ruff: noqa: E501 (lines of PTX)
"""Asynchronous copies: cp.async, bulk copies and reductions, multicast, st.async and red.async."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .atomics import content
from .kernel import Case
from .warps import put

FILL = 0x5A5A5A5A


def _fill(words_a_lane: int, threads: int = 32) -> str:
    """Shared memory from %r1 filled, so that what a copy leaves alone shows."""
    body = f"    mov.b32 %r50, {FILL:#x};\n    shl.b32 %r51, %r0, 2;\n    add.u32 %r51, %r1, %r51;\n"
    for i in range(words_a_lane):
        body += f"    st.shared.b32 [%r51+{i * threads * 4}], %r50;\n"
    return body + "    bar.sync 0;\n"


def _dump(words_a_lane: int, total: int, threads: int = 32, at: int = 0) -> str:
    """Shared memory from %r1 to `out`."""
    body = ""
    for i in range(words_a_lane):
        body += f"    ld.shared.b32 %r52, [%r51+{i * threads * 4}];\n" + put("%r52", i + at, total)
    return body


def threads_copies() -> Iterator[Case]:
    address = "    mul.lo.u32 %r5, %r3, {n};\n    add.u32 %r6, %r1, %r5;\n    cvt.u64.u32 %d9, %r5;\n    add.s64 %d10, %d1, %d9;\n"
    end = "    cp.async.wait_all;\n    bar.sync 0;\n"
    for cache, n in (("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)):
        head = _fill(n // 4) + address.format(n=n)
        copy = f"    cp.async.{cache}.shared.global [%r6], [%d10], {n}"
        size = f"    rem.u32 %r7, %r3, {n + 1};\n"
        tail = end + _dump(n // 4, 32)
        yield Case(f"cp.async.{cache} {n}", head + copy + ";\n" + tail, out_words=8 * n)
        yield Case(f"cp.async.{cache} {n} sizes", head + size + copy + ", %r7;\n" + tail, out_words=8 * n)
        yield Case(f"cp.async.{cache} {n} size 0", head + copy + ", 0;\n" + tail, out_words=8 * n)
        odd = "    and.b32 %r8, %r3, 1;\n    setp.eq.u32 %p1, %r8, 1;\n"
        yield Case(f"cp.async.{cache} {n} ignore", head + odd + copy + ", %p1;\n" + tail, out_words=8 * n)
        yield Case(
            f"cp.async.{cache} {n} guarded", head + odd + "    @%p1" + copy + ";\n" + tail, out_words=8 * n
        )
    body = _fill(4) + address.format(n=4)
    for i in range(4):
        body += f"    cp.async.ca.shared.global.L2::128B [%r6+{128 * i}], [%d10+{128 * i}], 4;\n    cp.async.commit_group;\n"
    for i in range(4):
        body += f"    cp.async.wait_group {3 - i};\n    ld.shared.b32 %r10, [%r6+{128 * i}];\n" + put(
            "%r10", i
        )
    yield Case("cp.async groups", body, out_words=128)
    for noinc in ("", ".noinc"):
        count = 64 if noinc else 32
        body = (
            "    setp.ne.u32 %p0, %r0, 0;\n    @%p0 bra INITIALISED;\n"
            + f"    mbarrier.init.shared.b64 [%r1+2048], {count};\n"
        )
        body += "INITIALISED:\n    bar.sync 0;\n" + _fill(4) + address.format(n=16)
        body += (
            "    cp.async.cg.shared.global [%r6], [%d10], 16;\n"
            + f"    cp.async.mbarrier.arrive{noinc}.shared.b64 [%r1+2048];\n"
        )
        body += "    mbarrier.arrive.shared.b64 %d20, [%r1+2048];\nWAIT:\n    mbarrier.try_wait.shared.b64 %p1, [%r1+2048], %d20;\n"
        body += "    @!%p1 bra WAIT;\n" + _dump(4, 32)
        yield Case(f"cp.async.mbarrier.arrive{noinc}", body, out_words=128)


BARRIER = 3072
INIT = f"""    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra INITIALISED;
    mbarrier.init.shared.b64 [%r1+{BARRIER}], 1;
    fence.mbarrier_init.release.cluster;
INITIALISED:
    bar.sync 0;
"""
TOGETHER = "    barrier.cluster.arrive;\n    barrier.cluster.wait;\n"


def _wait() -> str:
    return f"WAIT:\n    mbarrier.try_wait.parity.shared.b64 %p1, [%r1+{BARRIER}], 0;\n    @!%p1 bra WAIT;\n"


def bulk() -> Iterator[Case]:
    for target in ("shared::cluster", "shared::cta"):
        for nbytes, offset in ((16, 0), (512, 0), (240, 32)):
            body = INIT + _fill(4) + "    fence.proxy.async;\n    bar.sync 0;\n    @%p0 bra ISSUED;\n"
            body += f"    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+{BARRIER}], {nbytes};\n"
            body += f"    cp.async.bulk.{target}.global.mbarrier::complete_tx::bytes [%r1+{offset}], [%d1+{offset * 2}], {nbytes}, [%r1+{BARRIER}];\n"
            body += "ISSUED:\n" + _wait() + _dump(4, 32)
            yield Case(f"cp.async.bulk.{target}.global {nbytes}", body, out_words=128)
    load = "    ld.global.b32 %r10, [%d4+{0}];\n    st.shared.b32 [%r51+{0}], %r10;\n"
    fill = (
        _fill(4)
        + "".join(load.format(128 * i) for i in range(4))
        + "    fence.proxy.async;\n    bar.sync 0;\n"
    )
    commit = "    cp.async.bulk.commit_group;\n    cp.async.bulk.wait_group 0;\nDONE:"
    first = "    setp.ne.u32 %p0, %r0, 0;\n    @%p0 bra DONE;\n"
    for nbytes, offset in ((16, 16), (512, 0), (240, 64)):
        copy = f"    cp.async.bulk.global.shared::cta.bulk_group [%d0+{offset}], [%r1+{offset}], {nbytes};\n"
        yield Case(f"cp.async.bulk.global.shared::cta {nbytes}", fill + first + copy + commit, out_words=128)
    for operation, type in reductions():
        kind = f"{operation}.{type}"
        name = f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{kind}"
        body = fill + first + f"    {name} [%d0], [%r1], 512;\n" + commit
        memory = content(type, 512, name + "memory")
        yield Case(name, body, out_words=128, source=content(type, 512, name), start=memory)


def reductions() -> Iterator[tuple[str, str]]:
    for type in ("u32", "s32", "u64", "f32", "f64"):
        yield "add", type
    for type in ("f16", "bf16"):
        yield "add.noftz", type
    for operation in ("min", "max"):
        for type in ("u32", "s32", "u64", "s64", "f16", "bf16"):
            yield operation, type
    for operation in ("and", "or", "xor"):
        yield operation, "b32"
        yield operation, "b64"
    yield "inc", "u32"
    yield "dec", "u32"


def distributed() -> Iterator[Case]:
    """Between the CTAs of a cluster: rank 0 sends 512 bytes to rank 1."""
    load = "    ld.global.b32 %r10, [%d4+{0}];\n    st.shared.b32 [%r51+{1}], %r10;\n"
    head = INIT + _fill(8) + "".join(load.format(512 * i, 128 * i) for i in range(4))
    head += "    fence.proxy.async;\n    bar.sync 0;\n" + TOGETHER
    head += "    setp.eq.u32 %p2, %r2, 1;\n    @%p2 bra TARGET;\n    @%p0 bra END;\n    mov.b32 %r20, 1;\n    mapa.shared::cluster.u32 %r21, %r1, %r20;\n"
    tail = "    bra END;\nTARGET:\n    @%p0 bra EXPECTED;\n"
    tail += f"    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+{BARRIER}], 512;\nEXPECTED:\n" + _wait()
    copy = f"    cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r21+512], [%r1], 512, [%r21+{BARRIER}];\n"
    yield Case(
        "cp.async.bulk.shared::cluster.shared::cta",
        head + copy + tail + _dump(8, 64) + "END:\n" + TOGETHER,
        out_words=512,
        cluster=2,
    )
    kinds = [f"{o}.{t}" for o in ("add", "min", "max") for t in ("u32", "s32")] + [
        "add.u64",
        "inc.u32",
        "dec.u32",
    ]
    kinds += [f"{o}.b32" for o in ("and", "or", "xor")]
    for kind in kinds:
        name = f"cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.{kind}"
        copy = f"    {name} [%r21], [%r1], 512, [%r21+{BARRIER}];\n"
        yield Case(
            name,
            head + copy + tail + _dump(8, 64) + "END:\n" + TOGETHER,
            out_words=512,
            cluster=2,
            source=content(kind.split(".")[1], 2048, name),
        )
    for vector, type, register in (
        ("", "b32", "r"),
        ("", "b64", "d"),
        (".v2", "b32", "r"),
        (".v4", "b32", "r"),
        (".v2", "b64", "d"),
    ):
        count = int(vector[2:]) if vector else 1
        nbytes = count * int(type[1:]) // 8
        every = (
            head.replace("    @%p0 bra END;\n", "")
            + f"    mul.lo.u32 %r22, %r3, {nbytes};\n    add.u32 %r23, %r21, %r22;\n"
        )
        every += f"    mul.wide.u32 %d10, %r3, {nbytes};\n    add.s64 %d11, %d1, %d10;\n"
        names = [f"%{register}{30 + i}" for i in range(count)]
        for i, name in enumerate(names):
            every += f"    ld.global.{type} {name}, [%d11+{i * nbytes // count}];\n"
        value = names[0] if count == 1 else "{" + ", ".join(names) + "}"
        every += f"    st.async.weak.shared::cluster.mbarrier::complete_tx::bytes{vector}.{type} [%r23], {value}, [%r21+{BARRIER}];\n"
        text = every + tail.replace(" 512;", f" {32 * nbytes};") + _dump(8, 64) + "END:\n" + TOGETHER
        yield Case(f"st.async{vector}.{type}", text, out_words=512, cluster=2)
    for kind in kinds:
        type = kind.split(".")[1]
        nbytes = int(type[1:]) // 8
        value = "%r30" if nbytes == 4 else "%d30"
        every = (
            head.replace("    @%p0 bra END;\n", "")
            + f"    mul.lo.u32 %r22, %r3, {nbytes};\n    add.u32 %r23, %r21, %r22;\n"
        )
        every += f"    mul.wide.u32 %d10, %r3, {nbytes};\n    add.s64 %d11, %d1, %d10;\n    ld.global.b{8 * nbytes} {value}, [%d11+1024];\n"
        every += f"    red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.{kind} [%r23], {value}, [%r21+{BARRIER}];\n"
        text = every + tail.replace(" 512;", f" {32 * nbytes};") + _dump(8, 64) + "END:\n" + TOGETHER
        yield Case(f"red.async.{kind}", text, out_words=512, cluster=2, source=content(type, 2048, kind))


def multicast() -> Iterator[Case]:
    """Rank `by` of a cluster copies to every CTA of a mask, whose barriers each get the whole count."""
    for size, mask, by in ((2, 3, 0), (2, 2, 0), (4, 15, 1), (4, 10, 2)):
        for kind in ("bulk", "1d", "2d"):
            head = INIT + _fill(4) + "    fence.proxy.async;\n    bar.sync 0;\n" + TOGETHER
            head += f"    mov.b32 %r20, {mask};\n    shr.u32 %r21, %r20, %r2;\n    and.b32 %r22, %r21, 1;\n    setp.eq.u32 %p3, %r22, 0;\n"
            head += "    @%p0 bra EXPECTED;\n    @%p3 bra EXPECTED;\n"
            head += (
                f"    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+{BARRIER}], 256;\nEXPECTED:\n    bar.sync 0;\n"
                + TOGETHER
            )
            head += f"    setp.ne.u32 %p4, %r2, {by};\n    @%p0 bra ISSUED;\n    @%p4 bra ISSUED;\n    mov.b16 %h1, {mask};\n    mov.b64 %d20, p_bytes;\n"
            head += "    cvta.param.u64 %d21, %d20;\n"
            if kind == "bulk":
                head += f"    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1+128], [%d1+64], 256, [%r1+{BARRIER}], %h1;\n"
            else:
                at = "{16}" if kind == "1d" else "{4, 2}"
                at = at.replace("16", "%r30").replace("4,", "%r30,").replace(" 2", " %r31")
                head += f"    mov.b32 %r30, {16 if kind == '1d' else 4};\n    mov.b32 %r31, 2;\n"
                head += f"    cp.async.bulk.tensor.{kind}.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%r1+128], [%d21, {at}], [%r1+{BARRIER}], %h1;\n"
            head += (
                "ISSUED:\n    @%p3 bra ENDED;\n"
                + _wait()
                + "ENDED:\n    bar.sync 0;\n"
                + _dump(4, 32 * size)
                + TOGETHER
            )
            # dtype u32, rank, address, dims, strides, box, element strides, interleave, swizzle, promotion, fill
            spec: tuple[object, ...] = ()
            if kind == "1d":
                spec = (2, 1, 0, (1000,), (), (64,), (1,), 0, 0, 0, 0)
            if kind == "2d":
                spec = (2, 2, 0, (32, 30), (128,), (8, 8), (1, 1), 0, 1, 0, 0)
            yield Case(
                f"multicast {kind} {mask:#x} of {size}",
                head,
                out_words=128 * size,
                cluster=size,
                tensor_map=spec,
            )


def tensor_loads() -> Iterator[Case]:
    """Tensor loads whose destination is written as the CTA's own shared memory."""
    for rank in range(1, 6):
        box = (8, 4, 2, 2, 1)[:rank]
        nbytes, at = 4 * math.prod(box), (4, 1, 1, 0, 1)[:rank]
        body = INIT + _fill(4) + "    fence.proxy.async;\n    bar.sync 0;\n    mov.b64 %d20, p_bytes;\n"
        body += "    cvta.param.u64 %d21, %d20;\n    @%p0 bra ISSUED;\n"
        body += f"    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+{BARRIER}], {nbytes};\n"
        body += "".join(f"    mov.b32 %r{30 + i}, {c};\n" for i, c in enumerate(at))
        coordinates = ", ".join(f"%r{30 + i}" for i in range(rank))
        body += f"    cp.async.bulk.tensor.{rank}d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r1], [%d21, {{{coordinates}}}], [%r1+{BARRIER}];\n"
        body += "ISSUED:\n" + _wait() + _dump(4, 32)
        dims, strides = (10, 5, 3, 2, 2)[:rank], (48, 240, 720, 1440)[: rank - 1]
        spec = (2, rank, 0, dims, strides, box, (1,) * rank, 0, 0, 0, 0)
        yield Case(f"tensor load {rank}d, shared::cta", body, out_words=128, tensor_map=spec)


def cases() -> Iterator[Case]:
    for make in (threads_copies, bulk, distributed, multicast, tensor_loads):
        yield from make()
