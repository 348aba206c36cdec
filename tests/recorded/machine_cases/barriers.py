# ruff: noqa: E501 (lines of PTX)
"""mbarriers, named barriers and cluster barriers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .kernel import Case
from .warps import put

STATE_BITS = 0xFFFFF80000000000  # parity and pending count; the bits below hold bytes outstanding and more


class _Sequence:
    """A random but legal sequence of mbarrier operations by one thread, as PTX that keeps every result."""

    def __init__(self, seed: int, count: int, transactions: bool) -> None:
        self.rng = random.Random(seed)
        self.count = self.next = self.pending = count
        self.tx = self.phase = 0
        self.transactions = transactions
        self.lines = [
            "setp.ne.u32 %p0, %r0, 0;",
            "@%p0 bra DONE;",
            f"mbarrier.init.shared.b64 [%r1], {count};",
        ]
        self.at = 0
        self.states: list[tuple[int, int]] = []  # (register, phase)

    def keep(self, register: str, width: int = 64) -> None:
        self.lines.append(f"st.global.b{width} [%d0+{8 * self.at}], {register};")
        self.at += 1

    def settle(self) -> None:
        if self.pending == 0 and self.tx == 0:
            self.phase += 1
            self.count = self.pending = self.next

    def step(self) -> None:
        choices = ["arrive", "arrive", "arrive count", "parity", "state", "pending"]
        if self.pending > 1:
            choices += ["noComplete"]
        if self.next > 1 and self.pending > 1:
            choices += ["drop", "drop noComplete"]
        if self.transactions:
            choices += ["expect", "arrive expect", "complete", "complete"]
        kind = self.rng.choice(choices)
        state = 10 + len(self.states) % 50
        if kind.startswith(("arrive", "drop", "noComplete")):
            if self.pending == 0:
                if self.tx > 0:
                    self.lines.append(f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r1], {self.tx};")
                    self.tx = 0
                self.settle()
                return
            k = self.rng.randint(1, self.pending)
            name = "arrive"
            if kind == "arrive":
                k, operands = 1, ""
            elif kind == "arrive count":
                operands = f", {k}"
            elif kind == "noComplete":
                k = self.rng.randint(1, self.pending - 1)
                name, operands = "arrive.noComplete", f", {k}"
            elif kind == "drop noComplete":
                k = self.rng.randint(1, min(self.pending, self.next) - 1)
                name, operands = "arrive_drop.noComplete", f", {k}"
                self.next -= k
            elif kind == "drop":
                k, name, operands = 1, "arrive_drop", ""
                self.next -= 1
            else:
                k, nbytes = 1, self.rng.choice((4, 16, 1000))
                self.tx += nbytes
                name, operands = "arrive.expect_tx", f", {nbytes}"
            self.lines.append(f"mbarrier.{name}.shared::cta.b64 %d{state}, [%r1]{operands};")
            self.states.append((state, self.phase))
            self.lines.append(f"and.b64 %d70, %d{state}, {STATE_BITS:#x};")
            self.keep("%d70")
            self.pending -= k
            self.settle()
        elif kind == "expect":
            nbytes = self.rng.choice((16, 48, 4096))
            if self.pending:
                self.tx += nbytes
                self.lines.append(f"mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], {nbytes};")
        elif kind == "complete":
            nbytes = self.tx if self.rng.random() < 0.6 else self.rng.randint(0, max(self.tx, 0))
            if nbytes > 0:
                self.tx -= nbytes
                self.lines.append(f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r1], {nbytes};")
                self.settle()
        elif kind == "parity":
            for parity in (0, 1):
                self.lines.append(f"mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], {parity};")
                self.lines.append("selp.b64 %d70, 1, 0, %p1;")
                self.keep("%d70")
        elif self.states:
            recent = [s for s in self.states[-40:] if s[1] >= self.phase - 1]
            if recent:
                register, _ = self.rng.choice(recent)
                if kind == "state":
                    self.lines.append(f"mbarrier.test_wait.shared::cta.b64 %p1, [%r1], %d{register};")
                    self.lines.append("selp.b64 %d70, 1, 0, %p1;")
                else:
                    self.lines.append(f"mbarrier.pending_count.b64 %r70, %d{register};")
                    self.lines.append("cvt.u64.u32 %d70, %r70;")
                self.keep("%d70")

    def body(self) -> str:
        if self.tx:
            self.lines.append(f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r1], {self.tx};")
        return "".join(f"    {line}\n" for line in self.lines) + "DONE:"


def mbarriers() -> Iterator[Case]:
    for seed in range(16):
        sequence = _Sequence(seed, (1, 2, 3, 5, 8, 32, 100, 1000)[seed % 8], seed >= 8)
        for _ in range(60):
            sequence.step()
        yield Case(f"mbarrier sequence {seed}", sequence.body(), out_words=2 * sequence.at)
    body = (
        "    setp.ne.u32 %p0, %r0, 0;\n    @%p0 bra INITIALISED;\n    mbarrier.init.shared.b64 [%r1], 128;\n"
    )
    body += "INITIALISED:\n    bar.sync 0;\n    mov.b32 %r10, 0;\nLOOP:\n    mbarrier.arrive.shared.b64 %d10, [%r1];\n"
    body += "WAIT:\n    mbarrier.try_wait.shared.b64 %p1, [%r1], %d10;\n    @!%p1 bra WAIT;\n    and.b32 %r11, %r10, 1;\n"
    body += "    mbarrier.test_wait.parity.shared.b64 %p2, [%r1], %r11;\n    selp.b32 %r12, 1, 0, %p2;\n"
    body += "    st.global.b32 [%d3], %r12;\n    bar.sync 0;\n    add.u32 %r10, %r10, 1;\n    setp.lt.u32 %p3, %r10, 3;\n"
    body += "    @%p3 bra LOOP;\n"
    yield Case("mbarrier of 128 threads", body, out_words=128, threads=128)
    # arrivals on another CTA's barrier
    body = (
        "    setp.ne.u32 %p0, %r0, 0;\n    @%p0 bra INITIALISED;\n    mbarrier.init.shared.b64 [%r1], 64;\n"
    )
    body += "    fence.mbarrier_init.release.cluster;\nINITIALISED:\n    barrier.cluster.arrive;\n    barrier.cluster.wait;\n"
    body += (
        "    mov.b32 %r10, 0;\n    mapa.shared::cluster.u32 %r11, %r1, %r10;\n    add.u32 %r20, %r1, 64;\n"
    )
    body += "    mapa.shared::cluster.u32 %r12, %r20, %r10;\n    shl.b32 %r21, %r4, 2;\n    add.u32 %r22, %r12, %r21;\n"
    body += "    ld.global.b32 %r13, [%d4];\n    st.shared::cluster.b32 [%r22], %r13;\n"
    body += "    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r11];\n    setp.ne.u32 %p1, %r2, 0;\n    @%p1 bra END;\n"
    body += "WAIT:\n    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r1], 0;\n    @!%p2 bra WAIT;\n"
    body += "    shl.b32 %r23, %r0, 3;\n    add.u32 %r24, %r20, %r23;\n    ld.shared.v2.b32 {%r25, %r26}, [%r24];\n"
    body += "    mul.wide.u32 %d10, %r0, 8;\n    add.s64 %d11, %d0, %d10;\n    st.global.v2.b32 [%d11], {%r25, %r26};\n"
    body += "END:\n    barrier.cluster.arrive;\n    barrier.cluster.wait;\n"
    yield Case("remote mbarrier arrivals", body, cluster=2)
    yield from remote_transactions()


def remote_transactions() -> Iterator[Case]:
    """Rank 1 arrives at rank 0's barrier, expecting what it then stores there and the copy that rank 0 makes itself.

    The barrier's address comes by mapa from a shared address, or by mapa and cvta from a generic one.
    """
    for name, at in (
        ("shared", "    mapa.shared::cluster.u32 %r11, %r1, 0;\n"),
        (
            "generic",
            "    cvt.u64.u32 %d10, %r1;\n    cvta.shared.u64 %d11, %d10;\n    mapa.u64 %d12, %d11, 0;\n"
            "    cvta.to.shared::cluster.u64 %d13, %d12;\n    cvt.u32.u64 %r11, %d13;\n",
        ),
    ):
        body = "    setp.ne.u32 %p0, %r0, 0;\n    @%p0 bra INITIALISED;\n    mbarrier.init.shared.b64 [%r1], 33;\n"
        body += "    fence.mbarrier_init.release.cluster;\nINITIALISED:\n    barrier.cluster.arrive;\n    barrier.cluster.wait;\n"
        body += at + "    setp.ne.u32 %p1, %r2, 1;\n    @%p1 bra COPY;\n    @%p0 bra ARRIVE;\n"
        body += "    mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%r11], 512;\nARRIVE:\n"
        body += "    mbarrier.arrive.release.cta.shared::cluster.b64 _, [%r11];\n    bra END;\nCOPY:\n    @%p0 bra WAIT;\n"
        body += "    cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1+512], [%d1], 512, [%r1];\n"
        body += "WAIT:\n    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r1], 0;\n    @!%p2 bra WAIT;\n"
        body += "    shl.b32 %r23, %r0, 2;\n    add.u32 %r24, %r1, %r23;\n    ld.shared.b32 %r25, [%r24+512];\n    st.global.b32 [%d3], %r25;\n"
        body += "    mbarrier.test_wait.parity.shared::cta.b64 %p3, [%r1], 1;\n    selp.b32 %r26, 1, 0, %p3;\n    st.global.b32 [%d3+128], %r26;\n"
        body += "END:\n    barrier.cluster.arrive;\n    barrier.cluster.wait;\n"
        yield Case(f"remote transactions, {name} address", body, cluster=2)


def named() -> Iterator[Case]:
    body = "    ld.global.b32 %r10, [%d4];\n    setp.gt.s32 %p1, %r10, 0;\n    setp.ge.u32 %p2, %r10, 0;\n"
    n = 0
    for prefix in ("bar", "barrier.cta"):
        for operation in ("popc.u32", "and.pred", "or.pred"):
            for predicate in ("%p1", "!%p1", "%p2", "!%p2"):
                for number, size in (("0", ""), ("3", ", 96")):
                    target = "%r11" if operation == "popc.u32" else "%p3"
                    body += f"    {prefix}.red.{operation} {target}, {number}{size}, {predicate};\n"
                    body += "" if operation == "popc.u32" else "    selp.b32 %r11, 1, 0, %p3;\n"
                    body += put("%r11", n, 96)
                    n += 1
    yield Case("bar.red", body, out_words=96 * n, threads=96)
    # A producer warp that arrives, two consumers that wait, twice around.
    body = "    shr.u32 %r5, %r0, 5;\n    setp.eq.u32 %p1, %r5, 0;\n    shl.b32 %r6, %r3, 2;\n    add.u32 %r7, %r1, %r6;\n"
    body += "    mov.b32 %r10, 0;\n    mov.b32 %r13, 0;\nLOOP:\n    @!%p1 bra CONSUMER;\n    mad.lo.u32 %r11, %r10, 1000, %r3;\n"
    body += "    st.shared.b32 [%r7], %r11;\n    bar.arrive 1, 96;\n    bar.sync 2, 96;\n    bra NEXT;\n"
    body += "CONSUMER:\n    bar.sync 1, 96;\n    ld.shared.b32 %r12, [%r7];\n    mad.lo.u32 %r13, %r13, 3, %r12;\n    bar.arrive 2, 96;\n"
    body += "NEXT:\n    add.u32 %r10, %r10, 1;\n    setp.lt.u32 %p2, %r10, 4;\n    @%p2 bra LOOP;\n" + put(
        "%r13", 0
    )
    yield Case("bar.arrive", body, out_words=96, threads=96)
    # The last warp is half empty, and one warp leaves before the barrier.
    body = "    setp.eq.u32 %p1, %r0, 99;\n    bar.red.popc.u32 %r10, 0, %p1;\n    setp.ge.u32 %p2, %r0, 0;\n"
    body += "    bar.red.popc.u32 %r11, 0, %p2;\n    barrier.cta.red.and.pred %p3, 1, %p2;\n    selp.b32 %r12, 1, 0, %p3;\n"
    yield Case(
        "bar.red of 80 threads",
        body + put("%r10", 0, 80) + put("%r11", 1, 80) + put("%r12", 2, 80),
        out_words=240,
        threads=80,
    )


def clusters() -> Iterator[Case]:
    names = ["%cluster_ctarank", "%cluster_nctarank"]
    names += [
        f"%{n}.{a}"
        for n in ("cluster_ctaid", "cluster_nctaid", "clusterid", "nclusterid", "ctaid")
        for a in "xyz"
    ]
    for size in (2, 4):
        body = ""
        for i, name in enumerate(names):
            body += f"    mov.u32 %r10, {name};\n" + put("%r10", i, 32 * size)
        body += "    mov.pred %p1, %is_explicit_cluster;\n    selp.b32 %r10, 1, 0, %p1;\n" + put(
            "%r10", len(names), 32 * size
        )
        yield Case(f"cluster of {size}", body, out_words=32 * size * (len(names) + 1), cluster=size)
        body = "    shl.b32 %r5, %r3, 2;\n    add.u32 %r6, %r1, %r5;\n    ld.global.b32 %r10, [%d4];\n    st.shared.b32 [%r6], %r10;\n"
        body += "    barrier.cluster.arrive.release;\n    barrier.cluster.wait.acquire;\n"
        body += f"    add.u32 %r7, %r2, 1;\n    and.b32 %r7, %r7, {size - 1};\n    mapa.shared::cluster.u32 %r8, %r6, %r7;\n"
        body += "    ld.shared::cluster.b32 %r11, [%r8];\n    getctarank.shared::cluster.u32 %r12, %r8;\n"
        body += "    cvt.u64.u32 %d10, %r6;\n    cvta.shared.u64 %d11, %d10;\n    mapa.u64 %d12, %d11, %r7;\n    ld.b32 %r13, [%d12];\n"
        body += "    getctarank.u64 %r14, %d12;\n    mapa.shared::cluster.u64 %d13, %d10, %r7;\n    ld.shared::cluster.u8 %r15, [%d13+1];\n"
        body += "    st.shared::cluster.b32 [%r8+1024], %r10;\n"
        body += "    barrier.cluster.arrive.release.aligned;\n    barrier.cluster.wait.acquire.aligned;\n    ld.shared.b32 %r16, [%r6+1024];\n"
        body += "".join(put(f"%r{11 + i}", i, 32 * size) for i in range(6))
        yield Case(f"mapa in a cluster of {size}", body, out_words=32 * size * 6, cluster=size)


def cases() -> Iterator[Case]:
    for make in (mbarriers, named, clusters):
        yield from make()
