"""Mutants of the SM100 GEMMs that are the same program as far as anybody can tell, and why."""

from __future__ import annotations

from tests.mutation.equivalent import OTHERS, TRY_WAIT, Equivalent

_KERNEL = "gemm.py:gemm"
_DENSE = (
    "gemm",
    "gemm_three_stages",
    "gemm_c",
    "gemm_bf16",
    "gemm_tn",
    "gemm_pair",
    "gemm_split_k",
    "gemm_swap_ab",
    "gemm_mxfp8_out",
    "gemm_nvfp4_out",
    "gemm_multicast",
    "gemm_batched",
    "gemm_heads",
    "gemm_clc",
)
_BY_SIZES = ("gemm_by_sizes", "gemm_swap_ab_by_sizes", "gemm_pair_by_sizes")
_GROUPED = ("gemm_by_indices", *_BY_SIZES, "gemm_by_indices_mxfp8_out")
_K_GROUPED = ("gemm_k_grouped", "gemm_k_grouped_nt")
_GEMMS = (*_DENSE, *_GROUPED, *_K_GROUPED)
_INIT = "another warp prefetches the descriptors and initialises the barriers; all warps meet behind it"
_ALLOCATE = "another warp allocates the tensor memory; all warps meet behind it, and read its address"
_RELINQUISH = "a promise not to allocate again; no other CTA on the SM waits for it, since one fits"
_ALLOCATED = "tcgen05.alloc is done when it returns; the fence orders tcgen05 operations that are not"
_BEHIND_ALLOCATION = (
    "no tcgen05 access precedes it, and each that follows has an mbarrier wait and a fence of its own before "
    "it"
)
_SOONER = "the next grid starts later; a matter of speed alone"
_LATER = (
    "where C is not loaded, the store warps touch global memory only after acc_full, which the loading warps' waits "
    "precede"
)
_WAITED = "every warp has waited where it began to walk over the groups"
_DRAIN = (
    "the end of one of the two loading warps waits for the empty barriers less; the other one waits for the same "
    "barriers (test_planted_bugs.py: without either, there is a warning)"
)
_OTHER_FENCE = "the other fence follows before the first MMA, since K > 0"
_OPERANDS = (
    "between the fence after acc_empty and the MMAs, nobody else touches tensor memory: the operands that `full` "
    "tells of lie in shared memory (NVIDIA's main loops have no fence there)"
)
_C_FULL = "every lane has waited on c_full, which the leader fed after the buffer's last store"
_C_FULL_LAST = (
    "as where c_full covers the other stores; and what the arrival on acc_empty covers is tcgen05.ld, which "
    "tcgen05.wait::ld.sync.aligned completes for the warp as one (lanes.py; NVIDIA's epilogues have no warp barrier "
    "there)"
)
_COVERED = (
    "even tiles wait for the tile before, which covers the odd ones; these wait for c_full, which has passed"
)
_ASKS = "the warp that asks for tiles jumps past the comparison, and none that comes to it is either of these warps"
_FREE = "another warp gives the tensor memory back; nothing is allocated after it"
_BEHIND_ALL = "the store warps have had one behind their last tcgen05.ld, and have waited for the MMAs"
_AHEAD_OF_DEALLOCATION = "tcgen05.dealloc alone follows, which is no asynchronous operation"
_SECOND_HALF = "hardware reads the first 64 of a map's 128 bytes (tensor_map.HARDWARE_NBYTES)"
_AS_ONE = (
    "each lane has executed the fence; and the warp has executed as one the copy that reads the pattern, before the "
    "leader changes it again"
)


def _without(kernels: tuple[str, ...], *left_out: str) -> tuple[str, ...]:
    return tuple(kernel for kernel in kernels if kernel not in left_out)


EQUIVALENT = [
    Equivalent(_BY_SIZES, "compare with 5 for 4", _KERNEL, (1,), 2, _INIT),
    Equivalent(_GROUPED, "compare with 6 for 5", _KERNEL, (1,), 3, _ALLOCATE),
    Equivalent(_GEMMS, "drop tcgen05.relinquish_alloc_permit", "tmem.py:allocate", (1,), 1, _RELINQUISH),
    Equivalent(_GEMMS, "drop tcgen05.fence::before_thread_sync", "tmem.py:allocate", (1,), 1, _ALLOCATED),
    Equivalent(_GEMMS, "drop tcgen05.fence::after_thread_sync", _KERNEL, (1,), 2, _BEHIND_ALLOCATION),
    Equivalent(_GEMMS, "drop griddepcontrol.launch_dependents", _KERNEL, (1,), 1, _SOONER),
    Equivalent(
        _without(_DENSE, "gemm_nvfp4_out"),
        "drop griddepcontrol.wait", "epilogue.py:store", (1,), 1, _LATER,
    ),
    Equivalent((*_GROUPED, *_K_GROUPED), "drop griddepcontrol.wait", "epilogue.py:store", (1,), 1, _WAITED),
    Equivalent(_K_GROUPED, "drop griddepcontrol.wait", "gemm.py:load", (1,), 1, _WAITED),
    Equivalent(_GROUPED, "drop griddepcontrol.wait", "gemm.py:load", (1, 2), 2, _WAITED),
    Equivalent(
        ("gemm_pair", "gemm_multicast", *_GROUPED),
        "negate the guard of bra", "ring.py:advance", (3, 9), 10, _DRAIN,
    ),
    Equivalent(
        _without(_DENSE, "gemm_tn", "gemm_pair", "gemm_multicast", "gemm_batched", "gemm_clc"),
        "negate the guard of bra", "ring.py:advance", (3, 10), 11, _DRAIN,
    ),
    Equivalent(("gemm_clc",), "negate the guard of bra", "ring.py:advance", (3, 11), 13, _DRAIN),
    Equivalent(
        _without(_GEMMS, "gemm_tn", "gemm_split_k", "gemm_k_grouped", "gemm_k_grouped_nt", "gemm_batched",
         "gemm_clc"),
        f"pass {TRY_WAIT}", "ring.py:wait", (3, 7), 8, _DRAIN,
    ),
    Equivalent(("gemm_split_k",), f"pass {TRY_WAIT}", "ring.py:wait", (4, 8), 9, _DRAIN),
    Equivalent(("gemm_clc",), f"pass {TRY_WAIT}", "ring.py:wait", (5, 11), 15, _DRAIN),
    Equivalent(_GEMMS, "drop tcgen05.fence::after_thread_sync", "gemm.py:multiply", (1,), 1, _OTHER_FENCE),
    Equivalent(
        _without(_GEMMS, "gemm_k_grouped"),
        "drop tcgen05.fence::after_thread_sync", "gemm.py:multiply_tile", (1,), 1, _OPERANDS,
    ),
    Equivalent(
        ("gemm_k_grouped",),
        "drop tcgen05.fence::after_thread_sync", "gemm.py:multiply_tile", (1, 2, 3, 4), 4, _OPERANDS,
    ),
    Equivalent(("gemm_clc",), "compare with 9 for 8", "launch_control.py:ask", (1,), 1, _ASKS),
    Equivalent(_without(_DENSE, "gemm_tn", "gemm_batched"), "compare with 6 for 5", _KERNEL, (2,), 2, _FREE),
    Equivalent(_GROUPED, "compare with 6 for 5", _KERNEL, (3,), 3, _FREE),
    Equivalent(_GEMMS, "drop tcgen05.fence::before_thread_sync", _KERNEL, (1,), 1, _BEHIND_ALL),
    Equivalent(_GEMMS, "drop tcgen05.fence::after_thread_sync", _KERNEL, (2,), 2, _AHEAD_OF_DEALLOCATION),
    Equivalent(
        ("gemm_k_grouped_nt",),
        "drop st.shared.v2.b64", "group_maps.py:begin", (5, 6, 7, 8, 13, 14, 15, 16), 16, _SECOND_HALF,
    ),
    Equivalent(("gemm_k_grouped_nt",), "drop bar.warp.sync", "group_maps.py:enter", (2,), 2, _AS_ONE),
    Equivalent(("gemm_split_k",), "negate the guard of bra", "splitk.py:others", (1,), 1, OTHERS),
]  # fmt: skip
