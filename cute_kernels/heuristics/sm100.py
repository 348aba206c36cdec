"""Estimates for the SM100 kernels.

The model of the persistent GEMMs, block-scaled and BF16, in cycles of one multiprocessor:

    K block  = max(MMA, shared memory reads, loads, (load latency + loads + MMA) / stages)
    tile     = K blocks * K block, or the epilogue's time if that is longer and a second accumulator hides it
    launch   = start + waves * tile + the last epilogue; if that is longer, the time of all DRAM traffic but the last
               wave's D in place of the tiles'

A CTA pair computes one tile of twice the rows: each half multiplies its rows by all of B, but loads and reads half
of B only, with the scale factors of all. So it wins where loads bound the K block and there are tiles for all pairs.
Where CTAs share the K blocks of tiles, heuristics/split_k.py has what takes the place of waves * tile.

Tiles of swapped operands have 128 rows of B, and few of A. That saves MMA time, shared memory and above all the store
of rows that are not there: it wins for few rows of A and many of B. Where N is small, 128 x 32 tiles that are not
swapped spread B over more multiprocessors.

Where other kernels hold some multiprocessors, CTAs with fixed tiles that find none free start when others end, so
that their waves come again; CTAs that ask for tiles share all of them among those that run, for a little more at the
end. Shared K blocks are divided by the multiprocessors that are free.

Its constants are the published peaks of a B200 divided by its multiprocessors and clock, and round guesses
for latencies. They are not measurements: what they must get right is the order of configurations.
"""

from __future__ import annotations

from cute_kernels.device.umma_formats import FORMATS, SWAPPED, TILE_BYTES

from . import split_k
from .common import Config, Estimate, GemmProblem, Unsuitable

# By kind. mxf4: 9 PFLOPS dense / 148 multiprocessors / 1.85 GHz is 16,384 multiply-adds a cycle; FP8 has half,
# BF16 a quarter.
MACS_PER_CYCLE = {"mxf4": 16384, "mxf4nvf4": 16384, "mxf8f6f4": 8192, "f16": 4096}
D_BYTES = {"bf16": 2, "f32": 4, "mxf8": 1, "nvf4": 0.5}

SHARED_READ = 128  # bytes a cycle that the tensor core reads operands at
LOAD = 64  # bytes a cycle from L2 that one multiprocessor asks for, whoever else gets them too
STORE = 32  # bytes a cycle from one multiprocessor
DRAM = 4300  # bytes a cycle, all multiprocessors: 8 TB/s at 1.85 GHz
LOAD_LATENCY = 1000  # cycles from issuing a load to its barrier
START = 3000  # cycles before the first MMA: launch, barriers, tensor memory, first load
PAIR_START = 300  # cycles more for each pair of a cluster, whose CTAs wait for one another at both ends
GPCS = 8  # at most: clusters lie inside one, and its multiprocessors come in twos
EPILOGUE_START = 400  # cycles from the last MMA to the first byte stored
ASK = 200  # cycles that the end of a CTA waits for the answer that no tile is left to ask for
HANDOVER = 2 * LOAD_LATENCY  # cycles from one CTA's last store to another's load of it, by way of a flag


def gemm(problem: GemmProblem, config: Config, num_sms: int) -> Estimate:
    """Estimate one configuration: "family_dtype", "tile_m", "tile_n", "tile_k", "stages", "acc_stages",
    "d_dtype", "accumulate", "a_major", "b_major", "batched", "k_grouped", "heads", "grouping", "clc", "cta_group",
    "multicast", "swap_ab" and "split_k" are read, and with that "slot_bytes".

    Raises Unsuitable for a configuration of other types or majorness, or without C where C is given, or the reverse.
    """
    if config["swap_ab"]:
        config = _unswapped(config)
    for key, wanted in (
        ("family_dtype", problem.operands),
        ("d_dtype", problem.d_dtype),
        ("accumulate", problem.accumulate),
        ("a_major", problem.a_major),
        ("b_major", problem.b_major),
        ("batched", problem.batches > 0 and not problem.k_grouped),
        ("k_grouped", problem.k_grouped),
        ("heads", problem.heads),
        ("grouping", problem.grouping),
        ("clc", config["clc"] if problem.scheduling == "auto" else problem.scheduling == "clc"),
    ):
        if config[key] != wanted:
            given, needed = (value if value != "" else "none" for value in (config[key], wanted))
            raise Unsuitable(f"{key} is {given}, the problem needs {needed}")
    tile_m, tile_n, tile_k = config["tile_m"], config["tile_n"], config["tile_k"]
    pairs = 1 + config["multicast"]  # of a cluster, side by side
    ctas, width = config["cta_group"] * pairs, tile_n * pairs

    if problem.grouping == "indices" and problem.alignment % tile_m:
        raise Unsuitable(f"groups begin at multiples of {problem.alignment}, tiles have {tile_m} rows")
    tiles = _tiles_m(problem, tile_m, problem.m) * _ceil(problem.n, width) * max(problem.batches, 1)
    free = num_sms - problem.busy_sms
    at_once, running = min(_clusters(num_sms, ctas), tiles), min(_clusters(free, ctas), tiles)
    if problem.grouping == "sizes":
        # Where the device alone knows the sizes, there is room for more tiles than are expected.
        tiles = _tiles_m(problem, tile_m, problem.expected_m) * _ceil(problem.n, width)
    if running <= 0:
        raise Unsuitable(f"a cluster of {ctas} does not fit {free} multiprocessors")
    # Of asked-for tiles; and of fixed ones, those of CTAs that start late included.
    waves = tiles / running if config["clc"] else tiles / at_once * _ceil(at_once, running)
    whole = _ceil(tiles, running) if config["clc"] else _ceil(tiles, at_once) * _ceil(at_once, running)
    k_blocks = problem.depth * _ceil(problem.k, tile_k)

    block, bound = _k_block(problem, config)
    main = k_blocks * block
    d_bytes = tile_m * width // ctas * D_BYTES[problem.d_dtype]
    epilogue = EPILOGUE_START + d_bytes * (2 if problem.accumulate else 1) / STORE
    hidden = config["acc_stages"] >= 2
    tile = max(main, epilogue) if hidden else main + epilogue
    exposed = epilogue if hidden else 0.0

    operands, d = _traffic(problem)
    dram = (operands + d * (whole - 1) / whole) / DRAM
    start = START + ctas // 2 * PAIR_START + (ASK if config["clc"] else 0)
    if config["split_k"]:
        return _shared(tiles, k_blocks, free // ctas, block, epilogue, dram, config)
    return Estimate(
        cycles=start + max(whole * tile, dram) + exposed,
        # A CTA for each tile that may be asked for; as many as fit do them.
        grid=((tiles if config["clc"] else at_once) * ctas, 1, 1),
        figures={
            "tiles": tiles,
            "CTAs/tile": ctas,
            "waves": waves,
            "cycles/K-block": block,
            "bound": "DRAM" if dram > whole * tile else "epilogue" if hidden and epilogue > main else bound,
            "stages": config["stages"],
        },
    )


def _unswapped(config: Config) -> Config:
    """Return a configuration for swapped operands as one for those of the problem: A and B are the problem's."""
    return {
        **config,
        "family_dtype": SWAPPED[config["family_dtype"]],
        "tile_m": config["tile_n"],
        "tile_n": config["tile_m"],
        "a_major": config["b_major"],
        "b_major": config["a_major"],
    }


def _shared(
    tiles: int, k_blocks: int, at_once: int, block: float, epilogue: float, dram: float, config: Config
) -> Estimate:
    """Estimate a launch whose CTAs share tiles, from cycles of a K block, of an epilogue, and of DRAM before it.

    at_once: CTAs, or pairs of them, which share as CTAs do, each CTA with a slot for its rows.
    """
    slot, ctas = config["slot_bytes"], config["cta_group"]
    leave = EPILOGUE_START + slot / STORE + HANDOVER
    division = split_k.best(tiles, k_blocks, at_once, block, leave, slot / LOAD)
    if division is None:
        raise Unsuitable(
            f"shares tiles among CTAs; {tiles} of {k_blocks} K blocks leave no CTA of {at_once * ctas} anything to "
            "share"
        )
    return Estimate(
        cycles=START + ctas // 2 * PAIR_START + max(division.cycles, dram) + epilogue,
        grid=(division.ctas * ctas, 1, 1),
        figures={
            "tiles": tiles,
            "CTAs": division.ctas * ctas,
            "K-blocks/CTA": division.share,
            "of": k_blocks,
            "collects": division.collects,
            "cycles/K-block": block,
            "stages": config["stages"],
        },
        arguments={"share": division.share},
    )


def _tiles_m(problem: GemmProblem, tile_m: int, rows: int) -> int:
    """Return the tile rows of so many rows, or, by sizes, of so many in each group."""
    return (problem.groups if problem.grouping == "sizes" else 1) * _ceil(rows, tile_m)


def _clusters(num_sms: int, ctas: int) -> int:
    """Return how many clusters are sure to run at once: those of 4 CTAs may leave two multiprocessors a GPC idle."""
    if ctas == 4:
        return max((num_sms - 2 * GPCS) // 4, min(num_sms // 4, 1))
    return num_sms // ctas


def _k_block(problem: GemmProblem, config: Config) -> tuple[float, str]:
    """Return the cycles of one K block, and what bounds them, in one CTA (of a pair, the one with more to load)."""
    tile_n, tile_k = config["tile_n"], config["tile_k"]
    form, ctas = FORMATS[problem.operands], config["cta_group"]
    rows_a, rows_b = config["tile_m"] // ctas, tile_n // ctas
    # Rows outside the matrices are never fetched, but take part in the MMA. Tiles that share scale words load them
    # each. By multicast, half of A comes with what the other pair asks for.
    loaded = (
        min(rows_a // (1 + config["multicast"]), problem.m) * form.a.bytes_in_memory(tile_k)
        + min(rows_a, problem.m) * 4 * form.a.words
        + min(rows_b, problem.n) * form.b.bytes_in_memory(tile_k)
        + min(tile_n, problem.n) * 4 * form.b.words
    )
    mma, loads = rows_a * tile_n * tile_k / MACS_PER_CYCLE[form.kind], loaded / LOAD
    parts = {
        "MMA": mma,
        "shared memory": (rows_a + rows_b) * TILE_BYTES / SHARED_READ,
        "loads": loads,
        "latency": (LOAD_LATENCY + loads + mma) / config["stages"],  # of a stage's way round its ring
    }
    bound = max(parts, key=lambda name: parts[name])
    return parts[bound], bound


def _traffic(problem: GemmProblem) -> tuple[float, float]:
    """Return the bytes of A and B, and of C and D, that must pass DRAM at least once."""
    form = FORMATS[problem.operands]
    operands = sum(
        rows * (of.bytes_in_memory(problem.k) + of.scale_bytes_in_memory(problem.k))
        for of, rows in ((form.a, _rows(problem)), (form.b, max(problem.groups, 1) * problem.n))
    )
    d = _rows(problem) * problem.n * D_BYTES[problem.d_dtype] * (2 if problem.accumulate else 1)
    batches = max(problem.batches, 1)
    return batches * problem.depth * operands, batches * d


def _rows(problem: GemmProblem) -> int:
    """Return the rows of D that are expected to be written."""
    return problem.groups * problem.expected_m if problem.grouping == "sizes" else problem.m


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
