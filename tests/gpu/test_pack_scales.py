"""Scale factors of float32 packed on a GPU in a captured graph: bit for bit what the CPU packs, also at each replay."""

from __future__ import annotations

import pytest
import torch

from cute_kernels import recipes
from cute_kernels.scale_factors import encode_scales, pack_for_kernel, pack_k_grouped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
POISON = -0x5A5A5A5B
REPLAYS = 3


def scales(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random ones, of which some are powers of two, or zero, subnormal, negative or no number."""
    random = torch.Generator().manual_seed(seed)
    made = (torch.rand(shape, generator=random) + 0.5) * torch.exp2(
        torch.randint(-120, 120, shape, generator=random)
    )
    special = torch.tensor([1.0, 0.0, -0.0, 2.0**-127, 1e-39, -1.0, torch.inf, -torch.inf, torch.nan, 3e38])
    which = torch.randint(0, len(special), shape, generator=random)
    return torch.where(torch.rand(shape, generator=random) < 0.3, special[which], made)


def elements(*shape: int, fp4: bool = False) -> torch.Tensor:
    if fp4:
        return torch.zeros(*shape[:-1], shape[-1] // 2, dtype=torch.uint8, device="cuda")
    return torch.zeros(shape, device="cuda").to(torch.float8_e4m3fn)


def captured(packing: recipes.Ahead) -> torch.cuda.CUDAGraph:
    """A graph of the packing alone. What waits for the device fails to be captured."""
    packing()  # loads torch's kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packing()
    return graph


# Shapes of A and of B, as (batches or groups, rows, K); rows and elements of K to a scale factor of each.
DENSE: dict[str, tuple[tuple[int, ...], tuple[int, ...], recipes.Recipe, recipes.Recipe, bool]] = {
    "rows, and blocks of 128": ((130, 272), (200, 272), (1, 128), (128, 128), False),
    "blocks of both": ((1000, 4096), (777, 4096), (128, 128), (128, 128), False),
    "32 of K": ((33, 1056), (5, 1056), (1, 32), (32, 32), False),
    "MXFP4": ((67, 2080), (1, 2080), (1, 32), (1, 32), True),
    "groups": ((512, 656), (3, 136, 656), (1, 128), (128, 128), False),
    "masked groups": ((4, 65, 7168), (4, 257, 7168), (1, 128), (128, 128), False),
}


@pytest.mark.parametrize("case", DENSE)
def test_rows_and_blocks(case: str) -> None:
    shape_a, shape_b, of_a, of_b, fp4 = DENSE[case]
    operands = []
    for (*lead, mn, k), (rows, granularity) in ((shape_a, of_a), (shape_b, of_b)):
        given = torch.empty(*lead, -(-mn // rows), -(-k // granularity), device="cuda")
        operands.append((elements(*lead, mn, k, fp4=fp4), given))
    (_, words_a), (_, words_b), _, packing = recipes.packed(operands[0], operands[1], (of_a, of_b))
    assert packing is not None
    graph = captured(packing)
    for replay in range(REPLAYS):
        now = [scales(given.shape, 2 * replay + i) for i, (_, given) in enumerate(operands)]
        for (_, given), new in zip(operands, now, strict=True):
            given.copy_(new)
        for words in (words_a, words_b):
            words.fill_(POISON)
        graph.replay()
        for words, new, (*_, mn, k), (rows, granularity) in (
            (words_a, now[0], shape_a, of_a),
            (words_b, now[1], shape_b, of_b),
        ):
            wanted = pack_for_kernel(new, mn, k, gran_mn=rows, gran_k=granularity, check="none")
            assert words.stride() == wanted.stride()
            assert torch.equal(words.cpu(), wanted)


@pytest.mark.parametrize("granularity", [128, 32])
def test_groups_along_k(granularity: int) -> None:
    """Whose lengths the device alone knows: each replay has others, some of them with room for more behind them."""
    k, mn = 2048, 70
    lengths = ([512, 0, 1152, 384], [2048, 0, 0, 0], [0, 0, 0, 0], [128, 128, 128, 128], [0, 896, 1024, 0])
    given = torch.empty(k // granularity, mn, device="cuda")
    ks = torch.zeros(4, dtype=torch.int32, device="cuda")
    (_, words), packing = recipes.packed_k_grouped(
        (elements(k, mn), given), (k, mn), None, ks, granularity, "a"
    )
    assert packing is not None
    graph = captured(packing)
    for seed, host in enumerate(lengths):
        new, used = scales(given.shape, seed), sum(host) // granularity
        given.copy_(new)
        ks.copy_(torch.tensor(host))
        words.fill_(POISON)
        graph.replay()
        wanted = pack_k_grouped(encode_scales(new[:used], check="none"), host, granularity)
        assert torch.equal(words[: len(wanted)].cpu(), wanted)
        assert not words[len(wanted) :].any()
