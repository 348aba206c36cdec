"""A case: a small PTX kernel around `in` and `out` memory, what it starts from, and how it is launched."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

POISON = 0xA5
SOURCE_BYTES = 4096
TARGET = "sm_90a"

_HEAD = """.version 8.6
.target {target}
.address_size 64
.extern .shared .align 1024 .b8 smem[];
{declarations}
.visible .entry kernel(.param .u64 p_out, .param .u64 p_in, .param .align 64 .b8 p_bytes[128])
{directives}{{
    .reg .pred %p<40>;
    .reg .b16 %h<40>;
    .reg .b32 %r<200>;
    .reg .b64 %d<80>;
{locals}
    ld.param.u64 %d0, [p_out];
    ld.param.u64 %d1, [p_in];
    mov.u32 %r0, %tid.x;
    mov.b32 %r1, smem;
    mov.u32 %r2, %cluster_ctarank;
    mov.u32 %r3, %laneid;
    mad.lo.u32 %r4, %r2, {threads}, %r0;
    mul.wide.u32 %d2, %r4, 4;
    add.s64 %d3, %d0, %d2;
    add.s64 %d4, %d1, %d2;
"""


def random_bytes(name: str, nbytes: int) -> bytes:
    """Bytes that depend on the name alone."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, nbytes, np.uint8).tobytes()


@dataclass(frozen=True)
class Case:
    """One kernel. The body finds %r0 thread, %r1 shared memory, %r2 rank in the cluster, %r3 lane, %r4 thread of the
    cluster, %d0 out, %d1 in, %d3 &out[%r4] and %d4 &in[%r4] (4-byte elements), p_bytes 128 bytes of parameters.

    source: what `in` holds (random bytes by default). start: what `out` begins with; the rest is POISON. tensor_map:
    parameters of cuTensorMapEncodeTiled for p_bytes, addresses relative to `in`; else p_bytes are random.
    """

    name: str
    body: str
    out_words: int = 64
    threads: int = 32
    cluster: int = 1
    shared: int = 4096
    source: bytes = b""
    start: bytes = b""
    declarations: str = ""
    locals: str = ""
    directives: str = ""
    tensor_map: tuple[object, ...] = field(default=())

    @property
    def text(self) -> str:
        cluster = f".explicitcluster\n.reqnctapercluster {self.cluster}, 1, 1\n" if self.cluster > 1 else ""
        head = _HEAD.format(
            target=TARGET,
            declarations=self.declarations,
            directives=cluster + self.directives,
            locals=self.locals,
            threads=self.threads,
        )
        return head + self.body + "\n    ret;\n}\n"

    @property
    def input(self) -> bytes:
        return (self.source + random_bytes(self.name, SOURCE_BYTES))[:SOURCE_BYTES]

    @property
    def output(self) -> bytes:
        """What `out` holds before the launch."""
        return (self.start + bytes([POISON]) * (4 * self.out_words))[: 4 * self.out_words]

    @property
    def parameter_bytes(self) -> bytes:
        return random_bytes(self.name + " parameters", 128)

    @property
    def total_threads(self) -> int:
        return self.threads * self.cluster
