"""Which kernels of other people are run, with which arguments: sizes that an emulator finishes in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path("examples/python/CuTeDSL")
PRIMITIVES = EXAMPLES / "experimental/primitives"


class Case(NamedTuple):
    """A script, the architecture it is compiled for, and its arguments."""

    script: Path  # from the root of the checkout; QuACK's is a file of this project
    arch: str
    arguments: tuple[str, ...] = ()

    @property
    def quack(self) -> bool:
        return self.script.is_absolute()

    @property
    def name(self) -> str:
        """The script and its arguments, as tables show them."""
        if self.quack:
            return " ".join(["QuACK", *self.arguments])
        path = self.script
        for root in (PRIMITIVES, EXAMPLES):
            if path.is_relative_to(root):
                path = path.relative_to(root)
                break
        return " ".join([path.as_posix(), *self.arguments])


# Tables of the outcomes: heading, and with what the names of its kernels begin; the first that fits.
SECTIONS = (
    ("SM80", ("cute/ampere/",)),
    ("SM90, dense, grouped, normalization, attention", ("cute/hopper/",)),
    ("SM100, tutorials", ("cute/blackwell/tutorial/", "dsl_tutorials/")),
    ("SM100, dense, block-scaled, grouped, attention", ("cute/blackwell/",)),
    ("SM120", ("cute/blackwell_geforce/",)),
    ("QuACK", ("QuACK ",)),
    ("Primitives, SM100", ("",)),
)

# Why kernels are not right, by the script: faults of their own, and what their hosts need.
REASONS = {
    "cute/blackwell/kernel/blockwise_gemm/masked_grouped_gemm.py": "reads one element behind the end of "
    "`gidx_mapping`: out of range, or right where another tensor happens to lie there",
    "reduction/cluster_tmem_reduce.py": "warps of a CTA write the same word of shared memory with no barrier between",
    "tcgen05/2cta_mma_blockscale_m128.py": "the leading CTA of a pair copies scale factors out of the other's shared "
    "memory, and has waited for its own alone",
    "tma/tma_multicast.py": "one CTA waits for the box and tells the other by `barrier.cluster.arrive.relaxed`, which "
    "the ISA says orders no memory",
    "tma/tma_pipeline_single_warp.py": "shared memory is filled again after reads that no barrier orders before",
    "tutorial/02_naive_gemm.py": "1024 x 1024 x 1024 by plain loops: not done in time",
    "tutorial/03_gemm_tiled_smem.py": "1024 x 1024 x 1024 by plain loops: not done in time",
    "tutorial/gemm_M128_N128_Kany_TN_warpspec_multistage.py": "warps read the address of tensor memory with no barrier "
    "behind the warp that allocates it",
}

_AMPERE, _HOPPER = "cute/ampere/kernel", "cute/hopper/kernel"
_BLACKWELL, _GEFORCE = "cute/blackwell/kernel", "cute/blackwell_geforce/kernel"
_TUTORIAL = "cute/blackwell/tutorial"
_ONE = "--mma_tiler_mn 128,128 --cluster_shape_mn 1,1"
_TILE = "--mma_tiler_mn 128,64 --cluster_shape_mn 1,1"
_GROUPS = f"--num_groups 2 --problem_sizes_mnkl (128,128,128,1),(128,64,64,1) {_TILE}"
_HOPPER_GROUPS = "--num_groups 2 --problem_sizes_mnkl (128,128,128,1),(128,64,64,1)"
_FP8 = "--a_dtype Float8E4M3FN --b_dtype Float8E4M3FN"

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
    *(
        (f"{_HOPPER}/dense_gemm/dense_gemm.py", "sm_90a", words)
        for words in (
            "--mnkl 128,128,128,1",
            f"--mnkl 128,128,256,1 {_FP8}",
            "--mnkl 256,128,128,1 --cluster_shape_mn 2,1 --a_major m --b_major n --c_major m",
            "--mnkl 128,256,128,2 --tile_shape_mn 128,64 --cluster_shape_mn 1,2 --c_dtype Float32",
        )
    ),
    *(
        (f"{_HOPPER}/dense_gemm/dense_gemm_persistent.py", "sm_90a", words)
        for words in (
            "--mnkl 256,256,128,1",
            "--mnkl 512,256,128,1 --tile_shape_mn 128,256 --cluster_shape_mn 2,1",
        )
    ),
    (f"{_HOPPER}/dense_gemm/dense_gemm_fp8_2xacc.py", "sm_90a", "--mnkl 128,256,512,1"),
    (f"{_HOPPER}/dense_gemm/dense_gemm_fp8_gelu_persistent.py", "sm_90a", "--mnkl 256,128,256,1"),
    *(
        (
            f"{_HOPPER}/grouped_gemm/grouped_gemm.py",
            "sm_90a",
            f"{_HOPPER_GROUPS} --tensormap_update_mode {mode}",
        )
        for mode in ("SMEM", "GMEM")
    ),
    (f"{_HOPPER}/cta_norm/cta_norm.py", "sm_90a", "--M 8 --N 1024 --warmup_iterations 0 --iterations 1"),
    *(
        (f"{_HOPPER}/attention/fmha.py", "sm_90a", f"--q_shape 1,128,1,64 --k_shape 1,256,1,64{words}")
        for words in ("", " --is_persistent", " --is_causal")
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
    ("gemm", "sm_90a"),
    ("gemm_gated", "sm_90a"),
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
