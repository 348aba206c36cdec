"""Products with NVFP4 weights that others offer, where they are installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import Any

import torch

from perf.timing import Action

HUMMING = "humming"


class UnavailableError(RuntimeError):
    """Why a peer cannot take part."""


class Humming:
    """humming-kernels: wgmma and TMA on sm_90, compiled when first called by the CUDA toolkit's NVRTC.

    One matrix [N, K] in several copies, each a layer of its own.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        global_scale: torch.Tensor,
        copies: int,
        rows: Sequence[int],
    ) -> None:
        """codes, scales, global_scale: uint8 [N, K/2], float8_e4m3fn [N, K/16], float32 [1], as in checkpoints.

        rows: of the activations to come; only what they need is compiled.
        Raises UnavailableError where it is not installed or fails.
        """
        n, half = codes.shape
        tensors = {"weight": codes, "weight_scale": scales, "weight_scale_2": global_scale}
        try:
            from humming.layer import HummingLayer
            from humming.tune import get_heuristics_config

            self.layers: list[Any] = []
            for _ in range(copies):
                scheme = {"quant_method": "modelopt", "quant_algo": "nvfp4"}
                layer = HummingLayer(n, 2 * half, scheme, torch_dtype=torch.bfloat16).cuda()
                layer.load_from_tensors(tensors)
                layer.transform()
                self.layers.append(layer)
            choices = get_heuristics_config(self.layers[0].humming_config)
            needed = [[low, high, how] for low, high, how in choices if any(low < m <= high for m in rows)]
            self.tuning = json.dumps(needed)
        except Exception as error:  # whatever it does, the others are measured
            raise UnavailableError(f"{type(error).__name__}: {error}") from error

    def actions(self, x: torch.Tensor, out: torch.Tensor) -> list[Action]:
        """Launches of out = x @ W^T, one for each copy. Raises UnavailableError where it fails."""
        actions = [partial(layer, x, outputs=out, tuning_config=self.tuning) for layer in self.layers]
        try:
            actions[0]()
            torch.cuda.synchronize()
        except Exception as error:
            raise UnavailableError(f"{type(error).__name__}: {error}") from error
        return list(actions)

    @staticmethod
    def version() -> str:
        """Of the package; raises UnavailableError where it is not installed."""
        try:
            return metadata.version("humming-kernels")
        except metadata.PackageNotFoundError:
            raise UnavailableError("humming-kernels is not installed") from None
