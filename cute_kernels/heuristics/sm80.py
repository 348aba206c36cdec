"""Estimates for the kernels of the sm80 family, which are built for every architecture."""

from __future__ import annotations

from dataclasses import replace

from cute_kernels import w4a16_layout

from .common import Config, DequantizeProblem, Estimate, RepackProblem, Unsuitable, W4a16Problem

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


def gemm_w4a16(problem: W4a16Problem, config: Config, num_sms: int) -> Estimate:
    """Estimate one configuration, with the division of the K steps that suits it best; sm80/shape.py names its keys.

    The K steps of all tiles are shared out evenly, those of one or two tiles to each CTA where there are more, beside
    whole tiles (device/streamk.py): a share of at least a tile's K steps leaves sums for others early, so that nobody
    waits for them. Or all tiles are done whole, which leaves nothing to be collected. One CTA an SM, or as many as fit.
    Where the rows in use are known on the device alone, so is the division.
    """
    for key in ("x_dtype", "layout"):
        if config[key] != getattr(problem, key):
            raise Unsuitable(f"{key} is {config[key]}, not {getattr(problem, key)}")
    if problem.layout == "contiguous" and problem.alignment % config["tile_m"]:
        raise Unsuitable(
            f"experts begin at multiples of {problem.alignment}, tiles have {config['tile_m']} rows"
        )
    if problem.layout == "dense" and problem.m <= 8 < config["tile_m"]:
        raise Unsuitable(f"has {config['tile_m']} rows a tile; those with 8 measured faster for {problem.m}")
    k_steps = -(-problem.k // config["tile_k"])
    tiles = _w4a16_tiles_m(problem, config) * -(-problem.n // config["tile_n"])
    estimates = []
    for ctas in (num_sms * together for together in range(1, config["ctas"] + 1)):
        whole, rest = divmod(tiles, ctas)
        shared = max(whole - 1, 0)
        even = -(-(tiles - shared * ctas) * k_steps // ctas)
        for division in {(shared, even), (whole, k_steps if rest else 0)}:
            estimates.append(_w4a16_division(problem, config, num_sms, ctas, *division))
    best = min(estimates, key=lambda estimate: estimate.cycles)
    # Where the device divides, it does so among as many CTAs as there is room for.
    return replace(best, grid=(num_sms * config["ctas"], 1, 1)) if problem.layout == "masked" else best


def _w4a16_tiles_m(problem: W4a16Problem, config: Config) -> int:
    """Tile rows, as far as the host knows."""
    matrices = problem.experts if problem.layout == "masked" else 1
    return matrices * -(-problem.m // config["tile_m"])


# Fitted to 1104 measurements on an H200 (18 configurations, M 1 to 4096, six sizes of W, weights cold in L2), for the
# best choice and not the best estimate: which is 13 % off on average, where the choice is 3 % slower than the best.
# Kernels with cp.async, and GPUs that they are for, were not measured: the same figures rank them.
W4A16_DRAM = 25.5  # bytes of W a cycle, of one SM's share
W4A16_L2 = 44.4  # bytes of W and X a cycle into one SM
W4A16_MMA = 1.67  # cycles of an SM for an m16n8k16
W4A16_DECODE = 2.5  # the same for decoding a fragment, 16 x 16 elements of W
W4A16_WARP = (35.7, 4.0, 342.0)  # cycles of a warp alone: for a fragment decoded, for an MMA, for a stage
# With wgmma, fitted to 84 measurements of two configurations: cycles of an SM for 16 x 8 x 16 products, and for a byte
# of X, as it is read, sorted and read again.
W4A16_WGMMA, W4A16_SORT = 1.05, 0.016
# By the MMA: launch, first loads and last stores; waiting for another CTA's sums; cycles for a byte of a slot.
W4A16_ENDS = {"mma.sync": (6800, 5000, 0.01), "wgmma": (0, 8000, 0.02)}


def _w4a16_division(
    problem: W4a16Problem, config: Config, num_sms: int, ctas: int, whole: int, share: int
) -> Estimate:
    """Estimate a launch in which every CTA does `whole` tiles and a share of `share` K steps of the others."""
    tile_n, tile_m, tile_k = (config[f"tile_{axis}"] for axis in "nmk")
    k_steps, tiles_m = -(-problem.k // tile_k), _w4a16_tiles_m(problem, config)
    rest = tiles_m * -(-problem.n // tile_n) - whole * ctas
    grid = ctas if whole else -(-rest * k_steps // share)
    together = -(-grid // num_sms)  # CTAs of an SM
    steps = whole * k_steps + share
    fragments = tile_n // 16 * (tile_k // 16)
    readers = max(1.0, tiles_m / problem.experts)  # tile rows that share what is read of W
    into_sm = config["w_bytes"] + tile_m * tile_k * 2
    read = max(config["w_bytes"] / readers / W4A16_DRAM, into_sm / W4A16_L2) * together
    sm = (fragments * (tile_m // 8) * W4A16_MMA + fragments * config["warps_m"] * W4A16_DECODE) * together
    decoded = config["warp_n"] // 16 * (tile_k // 16 // config["warps_k"])
    warp = decoded * (W4A16_WARP[0] + config["warp_m"] // 8 * W4A16_WARP[1]) + W4A16_WARP[2]
    if config["mma"] == "wgmma":
        warp, sm = 0.0, fragments * (tile_m // 8) * W4A16_WGMMA + tile_m * tile_k * 2 * W4A16_SORT
    collect, (fixed, split, byte) = 0.0, W4A16_ENDS[config["mma"]]
    if share % k_steps:
        slots = max(1.0, min(8.0, k_steps / share))
        collect = slots * together * config["slot_bytes"] * byte + split
    figures = {"ctas": grid, "whole": whole, "share": share, "of": k_steps}
    cycles = {"read": steps * read, "mma": steps * sm, "warp": steps * warp, "collect": collect}
    return Estimate(
        cycles=fixed + steps * max(read, sm, warp) + collect,
        grid=(grid, 1, 1),
        figures={**figures, **cycles},
        arguments={"whole": whole, "share": share},
    )
