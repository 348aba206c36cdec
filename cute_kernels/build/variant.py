"""What one compiled kernel is, as the kernel packages hand it to the build.

No DSL and no torch here: `python -m cute_kernels list` and an up-to-date build read these values
without either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

ParamKind = Literal["tensor_map", "pointer", "i32", "u32", "f32", "i64"]
Swizzle = Literal["none", "32B", "64B", "128B"]
L2Promotion = Literal["none", "64B", "128B", "256B"]
OobFill = Literal["zero", "nan"]

PARAM_NBYTES: dict[str, int] = {"tensor_map": 128, "pointer": 8, "i32": 4, "u32": 4, "f32": 4, "i64": 8}


@dataclass(frozen=True)
class TensorMapSpec:
    """The static half of a TMA descriptor: what the compiled kernel fixes.

    dtype: name of a CUtensorMapDataType, lower case and without its prefix: "u8", "u16", "u32", "i32",
        "bf16", "f32", "b4x16" (16U4_ALIGN8B), "b4x16_p64" (16U4_ALIGN16B), ...
    box: elements, innermost dimension first.
    element_strides: one a dimension; () = all ones.
    blocks: how many boxes that lie side by side along the innermost dimension come as one. Map and box have one
        dimension more then, the third: that of blocks, each as wide as a box. A last block that is not whole goes on
        with the row behind, where boxes of their own would have zeros; so the map lacks the last row, behind which
        there is nothing. It comes by another parameter's map, of single boxes: NAME_boxes, where this is NAME.
    """

    dtype: str
    box: tuple[int, ...]
    swizzle: Swizzle
    l2_promotion: L2Promotion = "256B"
    oob_fill: OobFill = "zero"
    element_strides: tuple[int, ...] = ()
    blocks: int = 1

    def __post_init__(self) -> None:
        assert 1 <= len(self.box) <= 5, f"a tensor map has 1 to 5 dimensions, not {len(self.box)}"
        assert all(1 <= extent <= 256 for extent in self.box), f"box {self.box}: an extent is 1 to 256"
        assert self.swizzle in get_args(Swizzle), f"swizzle {self.swizzle!r}"
        assert self.l2_promotion in get_args(L2Promotion), f"l2_promotion {self.l2_promotion!r}"
        assert self.oob_fill in get_args(OobFill), f"oob_fill {self.oob_fill!r}"
        assert len(self.element_strides) in (0, len(self.box)), "element_strides: one a dimension, or none"
        assert self.blocks == 1 or (2 <= len(self.box) <= 4 and 1 < self.blocks <= 256), (
            f"blocks {self.blocks}"
        )


@dataclass(frozen=True)
class Param:
    """One kernel parameter; a variant lists them in launch order."""

    name: str
    kind: ParamKind
    tensor_map: TensorMapSpec | None = None  # only for kind "tensor_map"

    def __post_init__(self) -> None:
        assert self.kind in PARAM_NBYTES, (
            f"parameter {self.name}: kind {self.kind!r} is not one of {list(PARAM_NBYTES)}"
        )
        assert (self.kind == "tensor_map") == (self.tensor_map is not None), (
            f"parameter {self.name}: a TensorMapSpec goes with kind 'tensor_map', and with no other"
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the parameter takes in the launch."""
        return PARAM_NBYTES[self.kind]


@dataclass(frozen=True)
class Variant:
    """One kernel with all its compile-time choices made; the build compiles it once for each of `archs`.

    kernel: family, e.g. "gemm_blockscaled".
    name: unique over all families; symbol prefix and file stem, e.g. "sm100_gemm_mxf4_128x128x256_bf16".
    shape: the family's frozen Shape dataclass (plain ints, strings and bools) with a `config()` method, whose
        dict the manifest carries verbatim for the host code.
    block, cluster: threads per CTA and CTAs per cluster, (x, y, z).
    dynamic_shared: bytes of dynamic shared memory of the launch.
    compile: (arch, options) -> what `cute.compile(..., options=f"--gpu-arch {arch} {options}")` returned; the
        build asks for PTX and cubin through `options`. It imports the DSL lazily.
    allow_spills: why register spills or local memory are accepted; "" refuses them.
    """

    kernel: str
    name: str
    shape: Any
    params: tuple[Param, ...]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_shared: int
    archs: tuple[str, ...]
    compile: Callable[[str, str], Any]
    allow_spills: str = ""
