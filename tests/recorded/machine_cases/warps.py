"""Exchanges between lanes, and control flow."""

from __future__ import annotations

from collections.abc import Iterator

from .kernel import Case

# (name, what makes %p0 true in the lanes that take part, their mask)
PARTS = (
    ("all", "setp.ge.u32 %p0, %r3, 0;", 0xFFFFFFFF),
    ("low", "setp.lt.u32 %p0, %r3, 16;", 0x0000FFFF),
    ("odd", "and.b32 %r5, %r3, 1; setp.eq.u32 %p0, %r5, 1;", 0xAAAAAAAA),
    ("one", "setp.eq.u32 %p0, %r3, 13;", 0x00002000),
)
SHUFFLES = {
    "up": [(b, c) for b in (0, 1, 3, 31, 33) for c in (0, 0x1800, 0x1C00, 0x1005)],
    "down": [(b, c) for b in (0, 1, 3, 31, 33) for c in (0x1F, 0x181F, 0x1C1F, 0x0B)],
    "bfly": [(b, c) for b in (0, 1, 2, 16, 31) for c in (0x1F, 0x181F, 0x1C1F, 0x0B)],
    "idx": [(b, c) for b in (0, 7, 18, 31, 35) for c in (0x1F, 0x181F, 0x1C1F, 0x0B)],
}
# Of a partial mask only what is fetched from lanes that take part is defined.
PARTIAL = {
    ("up", "low"): [(1, 0), (5, 0x1800)],
    ("down", "low"): [(1, 0x100F), (3, 0x181F)],
    ("bfly", "low"): [(1, 0x1F), (9, 0x1F)],
    ("idx", "low"): [(3, 0x1F), (15, 0x181F)],
    ("bfly", "odd"): [(2, 0x1F), (30, 0x1F)],
    ("idx", "odd"): [(3, 0x1F), (1, 0x181F)],
    ("up", "odd"): [(2, 0), (4, 0)],
    ("down", "odd"): [(2, 0x1F), (4, 0x1F)],
    ("idx", "one"): [(13, 0x1F)],
}


def put(register: str, at: int, threads: int = 32, width: int = 32) -> str:
    return f"    st.global.b{width} [%d3+{at * threads * 4}], {register};\n"


def shuffles() -> Iterator[Case]:
    for mode, pairs in SHUFFLES.items():
        body = "    ld.global.b32 %r10, [%d4];\n"
        for i, (b, c) in enumerate(pairs):
            body += f"    shfl.sync.{mode}.b32 %r11|%p1, %r10, {b}, {c}, 0xffffffff;\n    selp.b32 %r12, 1, 0, %p1;\n"
            body += put("%r11", 2 * i) + put("%r12", 2 * i + 1)
        yield Case(f"shfl.{mode}", body, out_words=64 * len(pairs))
        body = "    ld.global.b32 %r10, [%d4];\n    ld.global.b32 %r11, [%d4+128];\n    and.b32 %r12, %r11, 0x1f1f;\n"
        body += f"    shfl.sync.{mode}.b32 %r13|%p1, %r10, %r11, %r12, -1;\n    selp.b32 %r14, 1, 0, %p1;\n"
        body += f"    shfl.sync.{mode}.b32 %r15, %r10, %r11, 0x{'0' if mode == 'up' else '1f'}, -1;\n"
        yield Case(
            f"shfl.{mode} by lane", body + put("%r13", 0) + put("%r14", 1) + put("%r15", 2), out_words=96
        )
    masks = {name: (setup, mask) for name, setup, mask in PARTS}
    for (mode, part), pairs in PARTIAL.items():
        setup, mask = masks[part]
        body = f"    ld.global.b32 %r10, [%d4];\n    {setup}\n    @!%p0 bra DONE;\n"
        for i, (b, c) in enumerate(pairs):
            body += f"    shfl.sync.{mode}.b32 %r11|%p1, %r10, {b}, {c}, {mask:#x};\n    selp.b32 %r12, 1, 0, %p1;\n"
            body += put("%r11", 2 * i) + put("%r12", 2 * i + 1)
        yield Case(f"shfl.{mode} {part}", body + "DONE:", out_words=64 * len(pairs))
    # Converged lanes with several member masks.
    body = "    and.b32 %r5, %r3, 24;\n    shl.b32 %r6, 255, %r5;\n    ld.global.b32 %r10, [%d4];\n"
    body += "    shfl.sync.bfly.b32 %r11, %r10, 3, 0x1f, %r6;\n    redux.sync.add.u32 %r12, %r10, %r6;\n"
    body += "    setp.gt.s32 %p1, %r10, 0;\n    vote.sync.ballot.b32 %r13, %p1, %r6;\n"
    yield Case(
        "member masks of quarters", body + put("%r11", 0) + put("%r12", 1) + put("%r13", 2), out_words=96
    )


def votes() -> Iterator[Case]:
    for name, setup, mask in PARTS:
        body = f"    {setup}\n    @!%p0 bra DONE;\n    ld.global.b32 %r10, [%d4];\n"
        n = 0
        for condition in (
            "setp.gt.s32 %p1, %r10, 0;",
            "setp.ge.u32 %p1, %r10, 0;",
            "setp.lt.u32 %p1, %r10, 0;",
        ):
            body += f"    {condition}\n"
            for negation in ("", "!"):
                for mode in ("all", "any", "uni"):
                    body += f"    vote.sync.{mode}.pred %p2, {negation}%p1, {mask:#x};\n    selp.b32 %r11, 1, 0, %p2;\n"
                    body += put("%r11", n)
                    n += 1
                body += f"    vote.sync.ballot.b32 %r11, {negation}%p1, {mask:#x};\n" + put("%r11", n)
                n += 1
        yield Case(f"vote {name}", body + "DONE:", out_words=32 * n)


def matches() -> Iterator[Case]:
    for name, setup, mask in PARTS:
        for bits, regs in ((32, "%r"), (64, "%d")):
            body = f"    {setup}\n    @!%p0 bra DONE;\n    ld.global.b32 %r10, [%d4];\n"
            for n, kept in enumerate((0x3, 0x1, 0x0, 0xFFFFFFFF)):
                body += f"    and.b32 %r20, %r10, {kept:#x};\n    mul.wide.u32 %d20, %r20, 0x10001;\n"
                body += f"    match.any.sync.b{bits} %r11, {regs}20, {mask:#x};\n"
                body += f"    match.all.sync.b{bits} %r12|%p1, {regs}20, {mask:#x};\n    selp.b32 %r13, 1, 0, %p1;\n"
                body += put("%r11", 3 * n) + put("%r12", 3 * n + 1) + put("%r13", 3 * n + 2)
            yield Case(f"match.b{bits} {name}", body + "DONE:", out_words=32 * 12)


def reductions() -> Iterator[Case]:
    kinds = [f"{op}.{t}" for op in ("add", "min", "max") for t in ("u32", "s32")]
    kinds += [f"{op}.b32" for op in ("and", "or", "xor")]
    for name, setup, mask in PARTS:
        body = f"    {setup}\n    @!%p0 bra DONE;\n    ld.global.b32 %r10, [%d4];\n    or.b32 %r20, %r10, 0x101;\n"
        for n, kind in enumerate(kinds):
            source = "%r20" if kind.startswith("and") else "%r10"
            body += f"    redux.sync.{kind} %r11, {source}, {mask:#x};\n" + put("%r11", n)
        yield Case(f"redux {name}", body + "DONE:", out_words=32 * len(kinds))
        body = f"    {setup}\n    @!%p0 bra DONE;\n    elect.sync %r11|%p1, {mask:#x};\n    selp.b32 %r12, 1, 0, %p1;\n"
        body += (
            "    elect.sync _|%p2, "
            + f"{mask:#x};\n    selp.b32 %r14, 1, 0, %p2;\n    activemask.b32 %r13;\n"
        )
        body += put("%r11", 0) + put("%r12", 1) + put("%r13", 2) + put("%r14", 3)
        yield Case(f"elect {name}", body + "DONE:", out_words=128)


def control() -> Iterator[Case]:
    body = "    and.b32 %r5, %r3, 3;\n    mov.b32 %r10, 7;\nTABLE: .branchtargets L0, L1, L2, L3;\n"
    body += "    brx.idx %r5, TABLE;\n"
    for i, label in enumerate(("L2", "L0", "L3", "L1")):
        body += f"{label}:\n    mad.lo.u32 %r10, %r10, {i + 3}, %r3;\n    activemask.b32 %r11;\n"
        body += "    bra MEET;\n" if i != 1 else ""
    body += "MEET:\n    bar.warp.sync -1;\n    shfl.sync.bfly.b32 %r12, %r10, 1, 0x1f, -1;\n"
    yield Case("brx.idx", body + put("%r10", 0) + put("%r12", 1))
    body = "    mov.b32 %r10, 0;\n    mov.b32 %r11, %r3;\nLOOP:\n    add.u32 %r10, %r10, %r11;\n"
    body += "    xor.b32 %r10, %r10, 0x55;\n    sub.u32 %r11, %r11, 1;\n    setp.gt.s32 %p1, %r11, 0;\n"
    body += "    and.b32 %r12, %r11, 4;\n    setp.ne.u32 %p2, %r12, 0;\n    @%p2 add.u32 %r10, %r10, 1000;\n"
    body += "    @!%p2 shl.b32 %r10, %r10, 1;\n    @%p1 bra LOOP;\n"
    body += "    bar.warp.sync -1;\n    redux.sync.add.u32 %r13, %r10, -1;\n"
    yield Case("loop of unequal trips", body + put("%r10", 0) + put("%r13", 1))
    body = "    ld.global.b32 %r10, [%d4];\n    mov.b32 %r20, 0;\n"
    for i in range(5):
        body += f"    shr.u32 %r5, %r10, {i};\n    and.b32 %r5, %r5, 1;\n    setp.eq.u32 %p{i + 1}, %r5, 1;\n"
        body += f"    @!%p{i + 1} bra ELSE{i};\n    mad.lo.u32 %r20, %r20, 5, {i};\n"
    body += "    add.u32 %r20, %r20, 0x10000;\n"
    for i in reversed(range(5)):
        body += f"    bra END{i};\nELSE{i}:\n    mad.lo.u32 %r20, %r20, 3, %r3;\nEND{i}:\n"
    body += "    bar.warp.sync -1;\n    vote.sync.any.pred %p9, %p1, -1;\n    @%p9 xor.b32 %r20, %r20, 1;\n"
    yield Case("nested branches", body + put("%r20", 0))
    body = "    setp.lt.u32 %p1, %r3, 8;\n    @%p1 exit;\n    activemask.b32 %r10;\n"
    body += "    shfl.sync.down.b32 %r11, %r3, 1, 0x1f, 0xffffff00;\n"
    yield Case("early exit", body + put("%r11", 0))
    body = "".join(
        f"    mov.u32 %r10, {name};\n" + put("%r10", i, 128)
        for i, name in enumerate(
            ("%laneid", "%lanemask_eq", "%lanemask_le", "%lanemask_lt", "%lanemask_ge", "%lanemask_gt")
            + ("%tid.x", "%ntid.x", "%nctaid.x", "%dynamic_smem_size", "WARP_SZ")
        )
    )
    yield Case("special registers", body, out_words=128 * 11, threads=128)


def cases() -> Iterator[Case]:
    for make in (shuffles, votes, matches, reductions, control):
        yield from make()
