"""Estimates for the kernels of the sm80 family, which are built for every architecture."""

from __future__ import annotations

from cute_kernels import w4a16_layout

from .common import Config, DequantizeProblem, Estimate, RepackProblem

BLOCK_BYTES = 8 + 1 + 32  # codes, scale factor, BF16
DRAM = 14.5  # bytes a cycle of one multiprocessor's share: H100's 3.35 TB/s / 132 / 1.75 GHz
WAVE = 1000  # cycles of a round of loads and stores, a guess
THREADS = 2048  # that are resident on a multiprocessor


def nvfp4_dequantize(problem: DequantizeProblem, config: Config, num_sms: int) -> Estimate:
    """Estimate one configuration; "threads" and "blocks_per_cta" are read.

    A CTA handles one run of blocks of one group. The time is that of the traffic, counting whole CTAs.
    """
    per_cta = config["blocks_per_cta"]
    ctas = -(-problem.blocks // per_cta)
    waves = ctas * problem.groups * config["threads"] / (num_sms * THREADS)
    traffic = ctas * per_cta * problem.groups * BLOCK_BYTES
    return Estimate(
        cycles=max(1.0, waves) * WAVE + traffic / (DRAM * num_sms),
        grid=(ctas, problem.groups, 1),
        figures={"ctas": ctas * problem.groups, "waves": waves, "MB": traffic / 1e6},
    )


def nvfp4_repack(problem: RepackProblem, config: Config, num_sms: int) -> Estimate:
    """Estimate one configuration; "warps" and "threads" are read. A CTA packs one unit a warp, side by side along K."""
    row_blocks, units = w4a16_layout.units(problem.n, problem.k)
    ctas = row_blocks * -(-units // config["warps"])
    waves = ctas * problem.experts * config["threads"] / (num_sms * THREADS)
    traffic = 2 * problem.experts * row_blocks * units * w4a16_layout.UNIT_BYTES
    return Estimate(
        cycles=max(1.0, waves) * WAVE + traffic / (DRAM * num_sms),
        grid=(ctas, problem.experts, 1),
        figures={"ctas": ctas * problem.experts, "waves": waves, "MB": traffic / 1e6},
    )
