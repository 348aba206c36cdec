"""NVFP4 linear layers of safetensors checkpoints: find them, pack them, and write packed checkpoints.

A layer is the tensors whose names share a prefix. Three schemas are understood:

| tensor | modelopt | compressed-tensors | packed (`convert` writes it) |
| --- | --- | --- | --- |
| codes uint8 [N, K/2] | weight | weight_packed | packed_weight, as `w4a16_layout` states it |
| block scales E4M3 [N, K/16], row-major | weight_scale | weight_scale | in packed_weight |
| global scale float32, [] or [1] | weight_scale_2, a multiplier | weight_global_scale, a divisor | global_scale, [1] |
| for quantized activations, not used here | input_scale | input_global_scale | - |

E experts in one tensor have one dimension more in front, and one global scale or [E]. All other tensors pass
through, if they are not quantized; what is quantized in another way is refused.

Sources: the exporters of NVIDIA's ModelOpt (`hf_quant_config.json`, NVFP4) and of compressed-tensors
(`nvfp4-pack-quantized`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from . import nvfp4_weight
from . import w4a16_layout as layout
from .checkpoints import Checkpoint, CheckpointError, TensorHeader
from .nvfp4_weight import PackedNvfp4Weight
from .runtime.errors import ArgumentError

Schema = Literal["modelopt", "compressed-tensors", "packed"]
Progress = Callable[[int, int, str], None]
"""(layers done, layers in all, name of the last)."""

METADATA_KEY = "cute_kernels"  # of a packed file's metadata
LAYOUT = {"layout": "w4a16", "version": 1}

# Leaves of a layer: codes, block scales, global scale, and what may stand beside them without meaning anything here.
_LEAVES: Mapping[Schema, tuple[str, str | None, str, frozenset[str]]] = {
    "modelopt": ("weight", "weight_scale", "weight_scale_2", frozenset({"input_scale"})),
    "compressed-tensors": (
        "weight_packed",
        "weight_scale",
        "weight_global_scale",
        frozenset({"input_global_scale"}),
    ),
    "packed": ("packed_weight", None, "global_scale", frozenset()),
}
_BESIDE = {"bias", "k_scale", "v_scale", "q_scale"}  # of the layer, or of the cache that it writes: kept
_PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "BOOL", "C64")
# Leaves that only quantized layers have: those of the schemas above, and of others.
_QUANTIZED = {
    *("weight_scale", "weight_global_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx"),
    *("qweight", "qzeros", "pre_quant_scale"),
}


@dataclass(frozen=True)
class Nvfp4Layer:
    """Where a layer's tensors are.

    name: the prefix of their names. shape: of the weight, (N, K) or (E, N, K).
    codes, scales, global_scale: names of tensors; scales is None where they are packed with the codes.
    """

    name: str
    schema: Schema
    shape: tuple[int, ...]
    codes: str
    scales: str | None
    global_scale: str

    @property
    def tensors(self) -> list[str]:
        """All names that a weight is made of."""
        return [name for name in (self.codes, self.scales, self.global_scale) if name is not None]


@dataclass(frozen=True)
class Contents:
    """layers: NVFP4 layers by name. others: names of the tensors that pass through."""

    layers: Mapping[str, Nvfp4Layer]
    others: tuple[str, ...] = field(default=())


def survey(checkpoint: Checkpoint) -> Contents:
    """Tell NVFP4 layers from tensors that pass through, by names, types and shapes; no tensor is read.

    Raises CheckpointError, naming tensors, for a layer that is quantized in another way, or not completely there,
    and for scales that are not row-major in blocks of 16 (swizzled for a kernel, blocks of 32, ...).
    """
    headers = checkpoint.headers()
    groups: dict[str, dict[str, TensorHeader]] = {}
    for name, header in headers.items():
        prefix, _, leaf = name.rpartition(".")
        groups.setdefault(prefix, {})[leaf] = header
    packed_shapes = _packed_shapes(checkpoint)
    layers: dict[str, Nvfp4Layer] = {}
    others: list[str] = []
    for prefix, leaves in groups.items():
        schema = _schema(leaves)
        if schema is None:
            _require_plain(prefix, leaves)
            others += [_join(prefix, leaf) for leaf in leaves]
        else:
            layers[prefix] = _layer(prefix, schema, leaves, packed_shapes)
            others += [_join(prefix, leaf) for leaf in leaves if leaf in _BESIDE]
    return Contents(layers, tuple(sorted(others)))


def load_layers(
    checkpoint: Checkpoint,
    layers: Iterable[Nvfp4Layer],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Iterator[tuple[Nvfp4Layer, PackedNvfp4Weight]]:
    """Read and pack layers, a file of the checkpoint after the other, a layer at a time.

    device: where the weights go; on a GPU they are packed there, with `ops.nvfp4_repack`.

    Raises CheckpointError for block scales that are negative or NaN, and for global scales that are zero,
    negative, infinite or NaN.
    """
    by_codes = {layer.codes: layer for layer in layers}
    done = 0
    for names in checkpoint.by_file(by_codes).values():
        # The tensors of a file are mapped, not read; pages come in when a layer is packed.
        tensors = checkpoint.load(name for codes in names for name in by_codes[codes].tensors)
        for codes in names:
            layer = by_codes[codes]
            try:
                weight = _weight(layer, {name: tensors.pop(name) for name in layer.tensors}, device)
            except ArgumentError as error:
                raise CheckpointError(f"{layer.name} of {checkpoint.path}: {error}") from error
            done += 1
            if progress is not None:
                progress(done, len(by_codes), layer.name)
            yield layer, weight


def packed_names(layer: str) -> tuple[str, str]:
    """Return the names of a packed layer's tensors: the data, and the global scale."""
    codes, _, factor, _ = _LEAVES["packed"]
    return _join(layer, codes), _join(layer, factor)


# Recognition


def _join(prefix: str, leaf: str) -> str:
    return f"{prefix}.{leaf}" if prefix else leaf


def _schema(leaves: Mapping[str, TensorHeader]) -> Schema | None:
    """The schema that a layer's leaves belong to, complete or not; None if it is not quantized as NVFP4."""
    if "packed_weight" in leaves:
        return "packed"
    if "weight_packed" in leaves:
        return "compressed-tensors"
    if "weight_scale_2" in leaves:
        return "modelopt"
    return None


def _require_plain(prefix: str, leaves: Mapping[str, TensorHeader]) -> None:
    for leaf, header in leaves.items():
        if leaf in _QUANTIZED or header.dtype not in _PLAIN:
            raise CheckpointError(
                f"{_join(prefix, leaf)} ({header.dtype} {list(header.shape)}, beside {sorted(set(leaves) - {leaf})}) "
                f"is of a quantization that is not understood. {_supported()}"
            )


def _supported() -> str:
    schemas = (
        ", ".join(leaf for leaf in leaves[:3] if leaf) + f" ({name})" for name, leaves in _LEAVES.items()
    )
    return f"NVFP4 layers have {'; or '.join(schemas)}. Export the checkpoint in one of these"


def _layer(
    prefix: str,
    schema: Schema,
    leaves: Mapping[str, TensorHeader],
    packed_shapes: Mapping[str, tuple[int, ...]],
) -> Nvfp4Layer:
    codes, scales, factor, unused = _LEAVES[schema]
    needed = [leaf for leaf in (codes, scales, factor) if leaf is not None]
    missing = [leaf for leaf in needed if leaf not in leaves]
    unknown = sorted(set(leaves) - {*needed, *unused, *_BESIDE})
    if missing or unknown:
        raise CheckpointError(
            f"layer {prefix} looks like NVFP4 ({schema}), but "
            + (f"lacks {missing}" if missing else f"has {unknown}, whose meaning is not known here")
            + f". {_supported()}"
        )
    if schema == "packed":
        shape = _packed_shape(prefix, leaves[codes], packed_shapes)
    else:
        assert scales is not None
        shape = _plain_shape(prefix, leaves[codes], leaves[scales])
    _require_header(prefix, factor, leaves[factor], "F32", _factor_shapes(schema, shape))
    names = (_join(prefix, leaf) if leaf else None for leaf in (codes, scales, factor))
    return Nvfp4Layer(prefix, schema, shape, *names)  # type: ignore[arg-type] # only scales may be None


def _plain_shape(prefix: str, codes: TensorHeader, scales: TensorHeader) -> tuple[int, ...]:
    """(N, K) or (E, N, K) of row-major codes and scales."""
    if codes.dtype != "U8" or len(codes.shape) not in (2, 3) or 0 in codes.shape:
        raise CheckpointError(
            f"the codes of layer {prefix} are {codes.dtype} {list(codes.shape)}; NVFP4 codes are U8 [N, K/2] or "
            "[E, N, K/2], two a byte"
        )
    *lead, half = codes.shape
    k = 2 * half
    if k % layout.BLOCK:
        raise CheckpointError(f"layer {prefix} has K {k}; it must be a multiple of {layout.BLOCK}")
    wanted = (*lead, k // layout.BLOCK)
    if scales.dtype != "F8_E4M3" or scales.shape != wanted:
        whole = scales.shape[:-1] == codes.shape[:-1] and scales.shape[-1] > 0 and k % scales.shape[-1] == 0
        guess = f": blocks of {k // scales.shape[-1]}" if whole else ": swizzled or padded for a kernel"
        raise CheckpointError(
            f"the block scales of layer {prefix} are {scales.dtype} {list(scales.shape)}"
            f"{guess if scales.shape != wanted else ''}; row-major ones for blocks of {layout.BLOCK} are F8_E4M3 "
            f"{list(wanted)}. Export the checkpoint with those"
        )
    return (*lead, k)


def _packed_shape(
    prefix: str, packed: TensorHeader, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """(N, K) or (E, N, K) of a packed weight, which its file's metadata tells."""
    if prefix not in shapes:
        raise CheckpointError(
            f"the file's metadata do not tell N and K of the packed layer {prefix}; `convert` writes them"
        )
    *lead, n, k = shapes[prefix]
    _require_header(prefix, "packed_weight", packed, "U8", [(*lead, *layout.units(n, k), layout.UNIT_BYTES)])
    return (*lead, n, k)


def _factor_shapes(schema: Schema, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    own: tuple[int, ...] = (shape[0],) if len(shape) == 3 else (1,)
    return [own] if schema == "packed" else [(), (1,), own]


def _require_header(
    prefix: str, leaf: str, header: TensorHeader, dtype: str, shapes: list[tuple[int, ...]]
) -> None:
    if header.dtype != dtype or header.shape not in shapes:
        wanted = " or ".join(dict.fromkeys(str(list(shape)) for shape in shapes))
        raise CheckpointError(
            f"{_join(prefix, leaf)} is {header.dtype} {list(header.shape)}; it must be {dtype} {wanted}"
        )


def _packed_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of packed layers, from the metadata of all files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for texts in checkpoint.metadata():
        if METADATA_KEY not in texts:
            continue
        try:
            manifest = json.loads(texts[METADATA_KEY])
            version = {key: manifest[key] for key in LAYOUT}
            shapes |= {name: tuple(map(int, shape)) for name, shape in manifest["layers"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f'the metadata "{METADATA_KEY}" of {checkpoint.path} are damaged: {error!r}'
            ) from error
        if version != LAYOUT:
            raise CheckpointError(
                f"{checkpoint.path} is packed as {version}; this version reads {LAYOUT}. Convert the original again"
            )
    return shapes


# Weights


def _weight(
    layer: Nvfp4Layer, tensors: Mapping[str, torch.Tensor], device: torch.device | str
) -> PackedNvfp4Weight:
    codes, factor = tensors[layer.codes], tensors[layer.global_scale]
    if layer.schema == "compressed-tensors":
        nvfp4_weight.require_global_scales(
            factor
        )  # the reciprocal of infinity would be 0, and of -0 -infinity
        factor = factor.reciprocal()
    factor = nvfp4_weight.global_scales(factor, layer.shape).clone()
    nvfp4_weight.require_global_scales(factor)
    if layer.scales is None:
        n, k = layer.shape[-2:]
        # The file's bytes lie at any address; kernels need aligned ones.
        return PackedNvfp4Weight(codes.clone(), n, k, factor).to(device)
    scales = tensors[layer.scales]
    if torch.device(device).type != "cuda":
        return nvfp4_weight.pack(codes, scales, factor).to(device)
    from . import ops

    nvfp4_weight.require_scales(scales)
    return ops.nvfp4_repack(codes.to(device), scales.to(device), factor.to(device))
