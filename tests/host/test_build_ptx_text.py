"""What the build checks and changes in PTX, on hand-written text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cute_kernels.build import ptx_text
from cute_kernels.build.errors import BuildError
from cute_kernels.build.variant import Param, TensorMapSpec, Variant

HEAD = """.version 9.4
.target sm_100a
.visible .entry kernel_0(
	.param .align 64 .b8 kernel_0_param_0[128],
	.param .u64 .ptr .global .align 1 kernel_0_param_1,
	.param .f32 kernel_0_param_2,
	.param .u64 kernel_0_param_3
)
.explicitcluster
.reqntid 256, 1, 1
.reqnctapercluster 2, 1, 1
{
"""
PLAIN = HEAD + "\tmov.u32 \t%r1, %tid.x;\n\tret;\n}\n"
WITH_LINES = (
    HEAD + '\t.loc\t1 7 3\n\tmov.u32 \t%r1, %tid.x;\n\t.loc\t1 8 0\n\tret;\n\n}\n\t.file\t1 "/a/b/c.py"\n'
)

PARAMS = (
    Param("map", "tensor_map", TensorMapSpec("u8", (128, 64), "128B")),
    Param("out", "pointer"),
    Param("factor", "f32"),
    Param("n", "i64"),
)


@dataclass(frozen=True)
class Shape:
    pass


def variant(
    params: tuple[Param, ...] = PARAMS,
    block: tuple[int, int, int] = (256, 1, 1),
    cluster: tuple[int, int, int] = (2, 1, 1),
) -> Variant:
    return Variant(
        "family", "kernel", Shape(), params, block, cluster, 0, ("sm_100a",), lambda arch, options: None
    )


def test_paths_become_relative_to_the_deepest_root() -> None:
    dsl = '\t.file\t2 "/x/site-packages/nvidia_cutlass_dsl/dsl_packages/cutlass/y.py"\n'
    text = ptx_text.relative_paths(WITH_LINES + dsl, (Path("/a"), Path("/a/b")))
    assert '.file\t1 "c.py"' in text
    assert '.file\t2 "nvidia_cutlass_dsl/dsl_packages/cutlass/y.py"' in text
    assert ptx_text.relative_paths(text, ()) == text


def test_path_under_no_root_is_refused() -> None:
    with pytest.raises(BuildError, match=r"the PTX names /a/b/c\.py, which lies neither under /other"):
        ptx_text.relative_paths(WITH_LINES, (Path("/other"),))


def test_line_information_alone_is_no_difference() -> None:
    ptx_text.check_same_code(PLAIN, WITH_LINES)


@pytest.mark.parametrize(
    "changed", [("%tid.x", "%tid.y"), ("\tret;\n", ""), ("\tret;\n", "\tret;\n\tret;\n")]
)
def test_another_instruction_is_a_difference(changed: tuple[str, str]) -> None:
    with pytest.raises(BuildError, match="line information changes the"):
        ptx_text.check_same_code(PLAIN, WITH_LINES.replace(*changed))


def test_interface_that_agrees_passes() -> None:
    ptx_text.check_interface(PLAIN, variant(), "kernel_0")


@pytest.mark.parametrize(
    ("stated", "entry", "reason"),
    [
        (variant(PARAMS[:3]), "kernel_0", r"states parameters of \[128, 8, 4\].*has \[128, 8, 4, 8\]"),
        (variant((PARAMS[1], PARAMS[0], *PARAMS[2:])), "kernel_0", "states parameters of"),
        (variant(block=(128, 1, 1)), "kernel_0", r"states \(128, 1, 1\) for \.reqntid"),
        (variant(cluster=(1, 1, 1)), "kernel_0", r"states \(1, 1, 1\) for \.reqnctapercluster"),
        (variant(), "kernel_1", r"\['kernel_0'\] are not the cubin's, kernel_1"),
    ],
)
def test_interface_that_differs_is_refused(stated: Variant, entry: str, reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        ptx_text.check_interface(PLAIN, stated, entry)


def test_unknown_parameter_type_is_refused() -> None:
    with pytest.raises(BuildError, match="of no known type"):
        ptx_text.check_interface(PLAIN.replace(".param .f32", ".param .f7"), variant(), "kernel_0")


@pytest.mark.parametrize(
    ("name", "kind", "spec"),
    [("a", "pointer", PARAMS[0].tensor_map), ("a", "tensor_map", None), ("a", "i16", None)],
)
def test_a_parameter_that_makes_no_sense_is_refused(name: str, kind: Any, spec: TensorMapSpec | None) -> None:
    with pytest.raises(AssertionError, match="parameter a"):
        Param(name, kind, spec)
