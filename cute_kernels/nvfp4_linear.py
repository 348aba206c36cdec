"""Linear layers whose weights are packed NVFP4, as torch modules, and models that get them from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from . import ops
from . import w4a16_layout as layout
from .checkpoints import CheckpointError, open_checkpoint
from .nvfp4_checkpoints import Nvfp4Layer, Progress, load_layers, survey
from .nvfp4_weight import PackedNvfp4Weight, concatenate
from .runtime.errors import ArgumentError


class Nvfp4Linear(nn.Module):
    """y = x @ W^T + bias with W [N, K] in packed NVFP4: `ops.w4a16_gemm_nt`. For inference: it has no backward.

    x is bfloat16 or float16 [..., K]; y is [..., N] of its type. The state has packed_weight (uint8
    [NB, KB, 1152]), global_scale (float32 [1]) and, where there is one, bias [N]: what a converted checkpoint holds
    of the layer. A change of the module's floating-point type leaves global_scale float32.
    """

    packed_weight: torch.Tensor
    global_scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A layer of zeros, for load_state_dict. in_features: K, a multiple of 16. dtype: of the bias.

        `Nvfp4Linear.of` makes one of a weight.
        """
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        shape = (*layout.units(out_features, in_features), layout.UNIT_BYTES)
        self.register_buffer("packed_weight", torch.zeros(shape, dtype=torch.uint8, device=device))
        self.register_buffer("global_scale", torch.ones(1, device=device, dtype=torch.float32))
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros, requires_grad=False)
        self._weight = self._wrapped()

    @classmethod
    def of(cls, weight: PackedNvfp4Weight, bias: torch.Tensor | None = None) -> Nvfp4Linear:
        """A layer that holds this weight [N, K], not a copy, and this bias [N]."""
        if weight.experts is not None:
            raise ArgumentError(f"the weight is {weight.shape}; a linear layer has one matrix [N, K]")
        if bias is not None and tuple(bias.shape) != (weight.n,):
            raise ArgumentError(
                f"the bias is {list(bias.shape)}; the weight {weight.shape} takes [{weight.n}]"
            )
        linear = cls(weight.k, weight.n, bias=False, device="meta")
        linear.packed_weight, linear.global_scale = weight.data, weight.global_scale
        linear.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        return linear

    @property
    def weight(self) -> PackedNvfp4Weight:
        """The weight that the layer holds now."""
        held = self._weight
        if held.data is not self.packed_weight or held.global_scale is not self.global_scale:
            held = self._weight = self._wrapped()  # checked once, not at every call
        return held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                "x wants a gradient; Nvfp4Linear has no backward: call it under torch.no_grad()"
            )
        y = ops.w4a16_gemm_nt(x, self.weight)
        return y if self.bias is None else y.add_(self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, weight=NVFP4"
        )

    def _wrapped(self) -> PackedNvfp4Weight:
        return PackedNvfp4Weight(self.packed_weight, self.out_features, self.in_features, self.global_scale)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Nvfp4Linear:
        before = self.global_scale
        super()._apply(fn, recurse)
        # half() and bfloat16() take every floating-point buffer along, but this one would lose its value.
        if self.global_scale.dtype != torch.float32:
            self.global_scale = before.to(self.global_scale.device)
        return self


class Nvfp4Linears(nn.Module):
    """Projections of the same input side by side, y = [x @ W_0^T | x @ W_1^T | ...] + bias, each with a global scale
    of its own.

    `fused` makes one Nvfp4Linear instead where the global scales agree.
    """

    def __init__(self, parts: Iterable[Nvfp4Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


def fused(
    weights: Sequence[PackedNvfp4Weight], bias: torch.Tensor | None = None
) -> Nvfp4Linear | Nvfp4Linears:
    """One module for projections [N_i, K] of the same input, such as Q, K and V; bias is [sum of N_i].

    Neighbours whose global scales agree become one weight; others stay apart, because one weight has one global
    scale, and taking it up into E4M3 block scales would round them. Reads the global scales.
    """
    runs: list[list[PackedNvfp4Weight]] = []
    for weight in weights:
        last = runs[-1][-1] if runs else None
        if last and last.n % layout.UNIT_ROWS == 0 and torch.equal(last.global_scale, weight.global_scale):
            runs[-1].append(weight)
        else:
            runs.append([weight])
    joined = [concatenate(run) for run in runs]
    biases = [None] * len(joined) if bias is None else bias.split([weight.n for weight in joined])
    parts = [Nvfp4Linear.of(weight, part) for weight, part in zip(joined, biases, strict=True)]
    return parts[0] if len(parts) == 1 else Nvfp4Linears(parts)


def replace_linears(
    model: nn.Module,
    source: str | Path,
    device: torch.device | str = "cpu",
    *,
    fused_from: Mapping[str, Sequence[str]] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Replace, in place, the nn.Linear of a model that a checkpoint has as NVFP4 layers of the same name.

    model: may be on the meta device, so that no BF16 weights are ever made.
    source: what `open_checkpoint` takes, in any schema of nvfp4_checkpoints.
    device: where the weights and biases go.
    fused_from: last names of the model's fused modules, and those of the checkpoint's layers that each is made of:
        {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}.

    Returns the names of the checkpoint's tensors that pass through, biases of replaced layers left out; load them
    with `Checkpoint.load` and `load_state_dict(strict=False)`. Raises CheckpointError, before the model is changed,
    for a layer that has no nn.Linear of its size in the model, and for what `survey` and `load_layers` refuse.
    """
    checkpoint = open_checkpoint(source)
    contents = survey(checkpoint)
    wanted = _assign(model, contents.layers, fused_from or {})
    loaded: dict[str, PackedNvfp4Weight] = {}
    for layer, weight in load_layers(checkpoint, contents.layers.values(), device, progress):
        loaded[layer.name] = weight
    others = set(contents.others)
    biases = {name: [f"{layer}.bias" for layer in layers] for name, layers in wanted.items()}
    replacements: dict[str, nn.Module] = {}
    for name, layers in wanted.items():
        there = [bias for bias in biases[name] if bias in others]
        if there and len(there) < len(layers):
            raise CheckpointError(f"{name} is made of {layers}, of which only {there} have a bias")
        tensors = checkpoint.load(there)
        bias = torch.cat([tensors[b] for b in there]).to(device) if there else None
        replacements[name] = fused([loaded.pop(layer) for layer in layers], bias)
        others -= set(there)
    for name, module in replacements.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)
    return sorted(others)


def _assign(
    model: nn.Module, layers: Mapping[str, Nvfp4Layer], fused_from: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The checkpoint's layers that each nn.Linear of the model is made of, or a complaint."""
    wanted: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        parent, dot, leaf = name.rpartition(".")
        parts = [parent + dot + part for part in fused_from.get(leaf, [leaf])]
        present = [part for part in parts if part in layers]
        if not present:
            continue  # kept in BF16
        if len(present) < len(parts):
            raise CheckpointError(
                f"{name} is to be made of {parts}, of which only {present} are NVFP4 layers"
            )
        k = {layers[part].shape[-1] for part in parts}
        n = sum(layers[part].shape[-2] for part in parts)
        if any(len(layers[part].shape) != 2 for part in parts) or (k, n) != (
            {module.in_features},
            module.out_features,
        ):
            raise CheckpointError(
                f"{name} is [{module.out_features}, {module.in_features}], but the checkpoint's layers are "
                f"{ {part: layers[part].shape for part in parts} }"
            )
        wanted[name] = parts
    left = sorted(set(layers) - {part for parts in wanted.values() for part in parts})
    if left:
        raise CheckpointError(
            f"the model has no nn.Linear for {len(left)} NVFP4 layers of the checkpoint, such as {left[:3]}; fused "
            "ones are named with fused_from"
        )
    return wanted
