"""(problem, architecture, multiprocessors) -> configuration, among those that were compiled; with the
reasons.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import sm80, sm100
from .common import (
    Candidate,
    Config,
    DequantizeProblem,
    Estimate,
    GemmProblem,
    Problem,
    RepackProblem,
    Supplier,
    W4a16Problem,
    rank,
    table,
)

# A kernel family belongs to the architecture that it was written for, whatever it is compiled for.
SUPPLIERS: dict[str, Supplier] = {
    "gemm_blockscaled": sm100.gemm,
    "gemm_bf16": sm100.gemm,
    "gemm_w4a16": sm80.gemm_w4a16,
    "nvfp4_dequantize": sm80.nvfp4_dequantize,
    "nvfp4_repack": sm80.nvfp4_repack,
}


def candidates(problem: Problem, num_sms: int, configs: Mapping[str, Config]) -> list[Candidate]:
    """Return the configurations (by name) of one architecture, ranked for a problem, the best first.

    Unsuitable ones come last, with the reason in place of an estimate. Raises KeyError for a family without
    supplier.
    """
    return rank(problem, num_sms, configs, SUPPLIERS[problem.kernel])


def explain(problem: Problem, num_sms: int, configs: Mapping[str, Config]) -> str:
    """Return the choice and what speaks for it, as text for a terminal."""
    return table(problem, num_sms, candidates(problem, num_sms, configs))


__all__ = [
    "Candidate",
    "Config",
    "DequantizeProblem",
    "Estimate",
    "GemmProblem",
    "Problem",
    "RepackProblem",
    "W4a16Problem",
    "candidates",
    "explain",
]
