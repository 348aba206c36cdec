"""The tables of docs/mutation.md, in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.mutation.equivalents import explanation
from tests.mutation.mutants import Mutant

Judged = Mapping[str, Sequence[tuple[Mutant, str]]]  # kernel -> its mutants, and how each was killed

ABOUT = {
    "gemm": "sm100 GEMM, MXFP4, 128x64 tiles, two stages, FP32 out",
    "gemm_three_stages": "the same with three stages",
    "gemm_c": "`gemm` with C added",
    "gemm_bf16": "128x128 tiles, BF16 out",
    "gemm_tn": "sm100 BF16 GEMM, A and B MN-major, 128x128 tiles, two stages, FP32 out",
    "gemm_pair": "`gemm` on a CTA pair, 256x64 tiles",
    "gemm_split_k": "`gemm` whose CTAs share the K tiles of tiles",
    "gemm_swap_ab": "sm100 GEMM, MXFP4, swapped operands, 128x32 tiles, two stages, C added, FP32 out",
    "gemm_by_indices": "sm100 GEMM, MXFP4, groups by indices, 128x128 tiles, two stages, BF16 out",
    "gemm_by_sizes": "the same with NVFP4, by sizes, masked and with an alignment",
    "gemm_swap_ab_by_sizes": "MXFP4, swapped operands, by sizes, 128x32 tiles",
    "gemm_pair_by_sizes": "MXFP4 on a CTA pair, by sizes, 256x128 tiles",
    "gemm_by_indices_mxfp8_out": "MXFP8 by indices, MXFP8 out",
    "gemm_mxfp8_out": "sm100 GEMM, MXFP4, 128x128 tiles, two stages, MXFP8 out",
    "gemm_nvfp4_out": "NVFP4, NVFP4 out",
    "gemm_k_grouped": "sm100 BF16 GEMM, groups along K, MN-major, 128x128 tiles, two stages, C added, FP32 out",
    "gemm_k_grouped_nt": "the same, K-major, by tensor maps that the kernel makes",
    "gemm_batched": "sm100 BF16 GEMM of batches, sums of them, 128x128 tiles, two stages, FP32 out",
    "gemm_heads": "sm100 GEMM, MXFP4, 128x128 tiles, two stages, BF16 out with a gap in every head",
    "gemm_clc": "sm100 GEMM, MXFP4, 128x128 tiles that CTAs ask for, two stages, BF16 out",
    "gemm_multicast": "sm100 GEMM, MXFP4, 256x128 tiles, two pairs that load A for each other, two stages, BF16 out",
    "w4a16": "sm80 NVFP4 weights times BF16 by TMA (built for sm_90a), 32x16x256 tiles, two stages, two K warps",
    "w4a16_wgmma": "the same with wgmma, 128x128x128 tiles, two stages",
    "w4a16_wgmma_wide": "256x128x128 tiles",
    "w4a16_wgmma_contiguous": "`w4a16_wgmma` of experts, contiguous groups",
    "w4a16_cp_async": "sm80 NVFP4 weights times BF16 by cp.async (built for sm_80), 32x16x256 tiles, three stages, two "
    "warps along M and two along K",
    "w4a16_cp_async_contiguous": "the same of experts, contiguous groups",
    "w4a16_cp_async_masked": "masked groups",
    "nvfp4_dequantize": "sm80 NVFP4 to BF16 (built for sm_90a)",
    "nvfp4_repack": "sm80 packing of NVFP4 weights (built for sm_90a)",
}


def scores(judged: Judged) -> Iterator[str]:
    """A row for each kernel: how many mutants, how many are equivalent, how many of the others are killed."""
    yield "| kernel | what it is | mutants | equivalent | killed of the rest |"
    yield "|---|---|---|---|---|"
    for kernel, verdicts in judged.items():
        survivors = [mutant for mutant, how in verdicts if not how]
        equivalent = sum(explanation(kernel, mutant) is not None for mutant in survivors)
        rest, killed = len(verdicts) - equivalent, len(verdicts) - len(survivors)
        share = f"{killed} of {rest}, {100 * killed / max(1, rest):.4g} %"
        yield f"| {kernel} | {ABOUT.get(kernel, '')} | {len(verdicts)} | {equivalent} | {share} |"


def survivors(judged: Judged) -> Iterator[str]:
    """A row for each kind of survivor: in which kernels, where, and why it survives."""
    yield "| kernels | mutant | where | why it survives |"
    yield "|---|---|---|---|"
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for kernel, verdicts in judged.items():
        nths: dict[tuple[str, str, int, str], list[int]] = defaultdict(list)
        for mutant, how in verdicts:
            if not how:
                known = explanation(kernel, mutant)
                what, why = (known.what.strip(), known.why) if known else (mutant.what, "**not explained**")
                nths[what, mutant.place, mutant.count, why].append(mutant.nth)
        for (what, place, count, why), found in nths.items():
            rows[what, f"{place} {_positions(found, count)}".strip(), why].append(kernel)
    for (what, where, why), kernels in rows.items():
        yield f"| {', '.join(kernels)} | {what} | {where} | {why} |"


def _positions(nths: Iterable[int], of: int) -> str:
    """Positions among `of` mutants of a name: "2, 4-6 of 7"; nothing for the only one."""
    found = sorted(set(nths))
    if of == 1:
        return ""
    if len(found) == of:
        return f"all {of}"
    runs: list[list[int]] = []
    for nth in found:
        if runs and nth == runs[-1][-1] + 1:
            runs[-1].append(nth)
        else:
            runs.append([nth])
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"{', '.join(spans)} of {of}"
