"""Which kernels of other people are run, with which arguments: sizes that an emulator finishes in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path("examples/python/CuTeDSL")
PRIMITIVES = EXAMPLES / "experimental/primitives"


class Case(NamedTuple):
    """A script, the architecture it is compiled for, and its arguments."""

    script: Path  # from the root of the checkout
    arch: str
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The script and its arguments, as tables show them."""
        path = self.script
        for root in (PRIMITIVES, EXAMPLES):
            if path.is_relative_to(root):
                path = path.relative_to(root)
                break
        return " ".join([path.as_posix(), *self.arguments])


_AMPERE, _BLACKWELL, _GEFORCE = "cute/ampere/kernel", "cute/blackwell/kernel", "cute/blackwell_geforce/kernel"
_TUTORIAL = "cute/blackwell/tutorial"
_ONE = "--mma_tiler_mn 128,128 --cluster_shape_mn 1,1"
_TILE = "--mma_tiler_mn 128,64 --cluster_shape_mn 1,1"
_GROUPS = f"--num_groups 2 --problem_sizes_mnkl (128,128,128,1),(128,64,64,1) {_TILE}"

# Script under EXAMPLES, architecture, arguments.
_TABLE: tuple[tuple[str, str, str], ...] = (
    (f"{_AMPERE}/dense_gemm/sgemm.py", "sm_80", "--mnk 128,128,64 --iterations 1"),
    (f"{_AMPERE}/dense_gemm/tensorop_gemm.py", "sm_80", "--mnkl 128,128,64,1 --atom_layout_mnk 2,2,1"),
    (f"{_AMPERE}/elementwise/elementwise_add.py", "sm_80", "--M 128 --N 256"),
    (f"{_AMPERE}/elementwise/elementwise_apply.py", "sm_80", "--M 128 --N 256"),
    (
        f"{_AMPERE}/attention/flash_attention_v2.py",
        "sm_80",
        "--batch_size 1 --seqlen_q 128 --seqlen_k 128 --num_head 1",
    ),
    (
        f"{_AMPERE}/attention/hstu_attention.py",
        "sm_80",
        "--batch_size 1 --seqlen_q 128 --seqlen_kv 128 --num_head 1 --head_dim 64",
    ),
    (
        f"{_BLACKWELL}/dense_gemm/dense_gemm.py",
        "sm_100a",
        f"--mnkl 128,128,128,1 --ab_dtype Float16 --c_dtype Float32 {_ONE}",
    ),
    (
        f"{_BLACKWELL}/dense_gemm/dense_gemm_persistent.py",
        "sm_100a",
        "--mnkl 256,256,128,1 --mma_tiler_mn 256,128 --cluster_shape_mn 2,1 --use_2cta_instrs --use_tma_store "
        "--ab_dtype Float16 --c_dtype Float16",
    ),
    (
        f"{_BLACKWELL}/dense_gemm/dense_gemm_persistent_prefetch.py",
        "sm_100a",
        f"--mnkl 256,128,128,1 --use_tma_store {_ONE}",
    ),
    (f"{_BLACKWELL}/dense_gemm/dense_gemm_software_pipeline.py", "sm_100a", f"--mnkl 128,128,128,1 {_ONE}"),
    (
        f"{_BLACKWELL}/dense_gemm/dense_gemm_alpha_beta_persistent.py",
        "sm_100a",
        f"--mnkl 128,128,128,1 {_ONE}",
    ),
    (f"{_BLACKWELL}/dense_gemm/dense_gemm_persistent_dynamic.py", "sm_100a", f"--mnkl 128,128,128,1 {_ONE}"),
    (f"{_BLACKWELL}/dense_gemm/dense_gemm_persistent_dynamic.py", "sm_100a", f"--mnkl 512,384,128,1 {_ONE}"),
    (
        f"{_BLACKWELL}/blockscaled_gemm/dense_blockscaled_gemm_persistent.py",
        "sm_100a",
        f"--mnkl 128,128,256,1 {_ONE}",
    ),
    (
        f"{_BLACKWELL}/blockscaled_gemm/dense_blockscaled_gemm_persistent.py",
        "sm_100a",
        "--mnkl 128,128,256,1 --a_dtype Float8E4M3FN --b_dtype Float8E4M3FN --sf_dtype Float8E8M0FNU "
        f"--sf_vec_size 32 {_ONE}",
    ),
    (f"{_BLACKWELL}/blockwise_gemm/blockwise_gemm.py", "sm_100a", f"--mnkl 128,128,256,1 {_ONE}"),
    (f"{_BLACKWELL}/blockwise_gemm/contiguous_grouped_gemm.py", "sm_100a", ""),
    (f"{_BLACKWELL}/blockwise_gemm/masked_grouped_gemm.py", "sm_100a", ""),
    (f"{_BLACKWELL}/grouped_gemm/grouped_gemm.py", "sm_100a", _GROUPS),
    (f"{_BLACKWELL}/grouped_gemm/grouped_gemm.py", "sm_100a", f"{_GROUPS} --tensormap_update_mode GMEM"),
    (
        f"{_BLACKWELL}/blockscaled_grouped_gemm/grouped_blockscaled_gemm.py",
        "sm_100a",
        f"--num_groups 2 --problem_sizes_mnkl (128,128,256,1),(128,128,256,1) {_ONE}",
    ),
    (f"{_BLACKWELL}/mixed_input_gemm/mixed_input_gemm.py", "sm_100a", "--mnkl 128,128,128,1"),
    (f"{_BLACKWELL}/rmsnorm/rmsnorm.py", "sm_100a", "--M 8 --N 1024"),
    (f"{_BLACKWELL}/attention/fmha/fmha.py", "sm_100a", "--q_shape 1,128,1,64 --k_shape 1,128,1,64"),
    *(
        (f"{_TUTORIAL}/tutorial_gemm/fp16_gemm_{step}.py", "sm_100a", "--mnk 256,256,128")
        for step in ("0", "1", "2", "3", "3_1", "4", "5", "6")
    ),
    *(
        (f"{_TUTORIAL}/tutorial_gemm/nvfp4_gemm_{step}.py", "sm_100a", "--mnkl 256,256,256,1")
        for step in ("0", "1")
    ),
    *((f"{_TUTORIAL}/tutorial_tma/tma_v{step}.py", "sm_100a", "") for step in ("0", "1", "2")),
    (f"{_GEFORCE}/dense_gemm/dense_gemm.py", "sm_120a", "--mnkl 128,128,64,1"),
    *(
        (
            f"{_GEFORCE}/blockscaled_gemm/dense_blockscaled_gemm_persistent_{name}.py",
            "sm_120a",
            "--mnkl 128,128,256,1",
        )
        for name in ("cooperative", "pingpong")
    ),
    ("dsl_tutorials/dataclass_immutable.py", "sm_100a", ""),
    ("dsl_tutorials/inline_ptx.py", "sm_100a", ""),
    ("dsl_tutorials/programmatic_dependent_launch.py", "sm_100a", ""),
)

QUACK = (
    ("softmax", "sm_90a"),
    ("softmax_cluster", "sm_90a"),
    ("softmax_backward", "sm_90a"),
    ("rmsnorm", "sm_90a"),
    ("layernorm", "sm_90a"),
    ("cross_entropy", "sm_90a"),
    ("topk", "sm_90a"),
    ("gemm", "sm_100a"),
    ("gemm", "sm_120a"),
    ("gemm_gated", "sm_100a"),
)


def cutlass_cases(root: Path) -> list[Case]:
    """The examples of a checkout of CUTLASS: the primitives, one by one, and the kernels of the table."""
    primitives = sorted(path.relative_to(root) for path in (root / PRIMITIVES).rglob("*.py"))
    cases = [Case(EXAMPLES / script, arch, tuple(words.split())) for script, arch, words in _TABLE]
    return cases + [Case(script, "sm_100a") for script in primitives]


def quack_cases() -> list[Case]:
    """QuACK's kernels, by the script of ours that calls them."""
    script = Path(__file__).with_name("quack_kernels.py")
    return [Case(script, arch, (name,)) for name, arch in QUACK]
