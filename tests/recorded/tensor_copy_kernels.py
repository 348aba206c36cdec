"""PTX for one tensor copy at a time: the kernels that record_tensor_copies.py runs on hardware."""

from __future__ import annotations

REGION = (
    32768  # bytes of shared memory that a kernel fills beforehand and hands back, after 1024 for the barrier
)
DYNAMIC_SHARED = 1024 + REGION
EXPECTED = REGION + 1024
PATIENCE = 100_000  # nanoseconds
REDUCE_OPS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")

_HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];\n"

_OPEN = """
.visible .entry {name}(.param .align 64 .b8 map[128], .param .u64 region, .param .u64 signalled, .param .u32 offset,
    .param .s32 c0, .param .s32 c1, .param .s32 c2, .param .s32 c3, .param .s32 c4)
{{
  .reg .b32 %base, %image, %t, %i, %a, %v, %off, %c<5>;
  .reg .b64 %memory, %signalled, %x, %m, %now, %end;
  .reg .pred %p, %q;
  ld.param.u64 %memory, [region];
  ld.param.u64 %signalled, [signalled];
  ld.param.u32 %off, [offset];
  ld.param.s32 %c0, [c0];
  ld.param.s32 %c1, [c1];
  ld.param.s32 %c2, [c2];
  ld.param.s32 %c3, [c3];
  ld.param.s32 %c4, [c4];
  cvta.to.global.u64 %memory, %memory;
  cvta.to.global.u64 %signalled, %signalled;
  mov.b64 %m, map;
  cvta.param.u64 %m, %m;
  mov.u32 %base, smem;
  add.u32 %image, %base, 1024;
  mov.u32 %t, %tid.x;
  setp.ne.u32 %q, %t, 0;
  shl.b32 %i, %t, 2;
FILL:
  cvt.u64.u32 %x, %i;
  add.u64 %x, %x, %memory;
  ld.global.u32 %v, [%x];
  add.u32 %a, %image, %i;
  st.shared.u32 [%a], %v;
  add.u32 %i, %i, 512;
  setp.lt.u32 %p, %i, {region};
  @%p bra FILL;
  @%q bra READY;
  mbarrier.init.shared.b64 [%base], 1;
  fence.mbarrier_init.release.cluster;
READY:
  fence.proxy.async;
  bar.sync 0;
  add.u32 %a, %image, %off;
  @%q bra DONE;
"""

# A load's barrier expects more than any load brings. After a while the kernel signals the rest itself, 16 bytes at a
# time, and counts: so the bytes that the copy signalled are measured, not assumed.
_LOAD = """
  mbarrier.arrive.expect_tx.shared.b64 %x, [%base], {expected};
  cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
    [%a], [%m, {{{coordinates}}}], [%base];
  mov.u64 %end, %globaltimer;
  add.u64 %end, %end, {patience};
WAIT:
  mov.u64 %now, %globaltimer;
  setp.lt.u64 %p, %now, %end;
  @%p bra WAIT;
  mov.u32 %v, {expected};
REST:
  mbarrier.test_wait.parity.shared.b64 %p, [%base], 0;
  @%p bra COUNTED;
  mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%base], 16;
  sub.u32 %v, %v, 16;
  setp.gt.s32 %p, %v, -16;
  @%p bra REST;
COUNTED:
  st.global.u32 [%signalled], %v;
  fence.proxy.async;
"""

_STORE = """
  {opcode}.{rank}d.global.shared::cta.{op}tile.bulk_group [%m, {{{coordinates}}}], [%a];
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group 0;
"""

_CLOSE = """
DONE:
  bar.sync 0;
  shl.b32 %i, %t, 2;
BACK:
  add.u32 %a, %image, %i;
  ld.shared.u32 %v, [%a];
  cvt.u64.u32 %x, %i;
  add.u64 %x, %x, %memory;
  st.global.u32 [%x], %v;
  add.u32 %i, %i, 512;
  setp.lt.u32 %p, %i, {region};
  @%p bra BACK;
  ret;
}}
"""


def kernel_name(kind: str, rank: int) -> str:
    """kind: "load", "store", or one of REDUCE_OPS."""
    return f"{kind}_{rank}d"


def kernels_ptx() -> str:
    """One module with a kernel for every direction, reduction and rank; 128 threads, DYNAMIC_SHARED bytes.

    Parameters: the tensor map; `region`, REGION bytes of global memory that shared memory is filled from
    beforehand and copied back to afterwards; `signalled`, where a load puts the bytes that its barrier was told
    of; the box image's offset in the region; five coordinates.
    """
    text = [_HEADER]
    for rank in range(1, 6):
        coordinates = ", ".join(f"%c{i}" for i in range(rank))
        for kind in ("load", "store", *REDUCE_OPS):
            opcode = "cp.async.bulk.tensor" if kind == "store" else "cp.reduce.async.bulk.tensor"
            body = _LOAD if kind == "load" else _STORE
            op = "" if kind == "store" else kind + "."
            name = kernel_name(kind, rank)
            text.append(
                (_OPEN + body + _CLOSE).format(
                    name=name,
                    region=REGION,
                    expected=EXPECTED,
                    patience=PATIENCE,
                    rank=rank,
                    coordinates=coordinates,
                    opcode=opcode,
                    op=op,
                )
            )
    return "".join(text)
