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

    The K steps of all tiles are shared out evenly (device/streamk.py): to one CTA an SM, to as many as fit, or whole
    tiles to each, which leaves nothing to be collected. Where the rows in use are on the device, so is the division.
    """
    for key in ("x_dtype", "layout"):
        if config[key] != getattr(problem, key):
            raise Unsuitable(f"{key} is {config[key]}, not {getattr(problem, key)}")
    if problem.layout == "contiguous" and problem.alignment % config["tile_m"]:
        raise Unsuitable(
            f"experts begin at multiples of {problem.alignment}, tiles have {config['tile_m']} rows"
        )
    k_steps = -(-problem.k // config["tile_k"])
    tiles = _w4a16_tiles_m(problem, config) * -(-problem.n // config["tile_n"])
    shares = {-(-tiles * k_steps // (num_sms * ctas)) for ctas in range(1, config["ctas"] + 1)}
    if problem.layout != "masked":
        shares.add(k_steps * -(-tiles // num_sms))
    estimates = [_w4a16_share(problem, config, num_sms, share) for share in sorted(shares)]
    best = min(estimates, key=lambda estimate: estimate.cycles)
    # Where the device alone knows how many rows are in use, as many CTAs divide them as there is room for.
    return replace(best, grid=(num_sms * config["ctas"], 1, 1)) if problem.layout == "masked" else best


def _w4a16_tiles_m(problem: W4a16Problem, config: Config) -> int:
    """Tile rows, as far as the host knows."""
    matrices = problem.experts if problem.layout == "masked" else 1
    return matrices * -(-problem.m // config["tile_m"])


# Fitted to 1104 measurements on an H200 (18 configurations, M 1 to 4096, six sizes of W, weights cold in L2), which
# cycles at 1.7 GHz then meet within 13 % on average; the choice is 3.4 % slower than the best one on average.
W4A16_DRAM = 20.9  # bytes of W a cycle, of one SM's share
W4A16_L2 = 49.4  # bytes of W and X a cycle into one SM
W4A16_MMA = 1.57  # cycles of an SM for an m16n8k16
W4A16_DECODE = 5.1  # the same for decoding a fragment, 16 x 16 elements of W
W4A16_WARP = (54.5, 3.9, 204.0)  # cycles of a warp alone: for a fragment decoded, for an MMA, for a stage
W4A16_COLLECT = 0.02  # cycles for a byte of a slot
W4A16_FIXED = 6600  # launch, first loads, last stores
W4A16_SPLIT = 1500  # waiting for another CTA's sums


def _w4a16_share(problem: W4a16Problem, config: Config, num_sms: int, share: int) -> Estimate:
    """Estimate a launch in which every CTA gets `share` K steps."""
    tile_n, tile_m, tile_k = (config[f"tile_{axis}"] for axis in "nmk")
    k_steps, tiles_m = -(-problem.k // tile_k), _w4a16_tiles_m(problem, config)
    tiles = tiles_m * -(-problem.n // tile_n)
    grid = -(-tiles * k_steps // share)
    together = min(-(-grid // num_sms), config["ctas"])  # CTAs of an SM, at a time
    steps = share * -(-grid // (num_sms * config["ctas"]))  # one after another
    fragments = tile_n // 16 * (tile_k // 16)
    x_bytes = min(problem.m, tile_m) * tile_k * 2
    readers = max(1.0, tiles_m / problem.experts)  # tile rows that share what is read of W
    read = max(config["w_bytes"] / readers / W4A16_DRAM, (config["w_bytes"] + x_bytes) / W4A16_L2) * together
    mma = fragments * (tile_m // 8)
    sm = (mma * W4A16_MMA + fragments * config["warps_m"] * W4A16_DECODE) * together
    decoded = config["warp_n"] // 16 * (tile_k // 16 // config["warps_k"])
    warp = decoded * W4A16_WARP[0] + decoded * (config["warp_m"] // 8) * W4A16_WARP[1] + W4A16_WARP[2]
    split = share % k_steps != 0
    slots = max(1.0, min(8.0, k_steps / share)) if split else 0.0
    collect = slots * together * config["slot_bytes"] * W4A16_COLLECT + split * W4A16_SPLIT
    return Estimate(
        cycles=W4A16_FIXED + steps * max(read, sm, warp) + collect,
        grid=(grid, 1, 1),
        figures={
            "ctas": grid,
            "share": share,
            "of": k_steps,
            "read": steps * read,
            "mma": steps * sm,
            "warp": steps * warp,
            "collect": collect,
        },
        arguments={"share": share},
    )
