"""The W4A16 GEMM with wgmma on the emulator: faults of its own, planted in its PTX, are found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import cute_kernels
from cute_kernels.emulator import EmulationError
from tests.building import Request, build
from tests.emulate.broken import rewritten
from tests.emulate.test_gemm_w4a16 import force, run
from tests.w4a16_cases import random_case

NAME = "sm80_gemm_w4a16_bf16_128x128x128_wgmma"
FENCE = "fence.proxy.async.shared::cta;"


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("cubins")
    assert not build(Request(out, ("sm_90a",), NAME, packages=("sm80",)), say=lambda line: None).failures
    yield out
    cute_kernels.set_cubins(None)


BUGS = {
    "no wgmma.fence": (lambda text: text.replace("wgmma.fence.sync.aligned;", ""), "race"),
    "the last group is not waited for": (
        lambda text: text.replace("wgmma.wait_group.sync.aligned \t0;", "wgmma.wait_group.sync.aligned 1;"),
        "race",
    ),
    "sorted rows are not fenced": (lambda text: text.replace(FENCE, ""), "missing-proxy-fence"),
    "no products are committed": (
        lambda text: text.replace("wgmma.commit_group.sync.aligned;", ""),
        "race",
    ),
}


@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
def test_it_is_right_as_it_is(cubins: Path, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, NAME)
    cute_kernels.set_cubins(cubins)
    assert run(random_case(131, 141, 784), num_sms=3, schedule=schedule) == ""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(
    bug: str, cubins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, kind = BUGS[bug]
    force(monkeypatch, NAME)
    cute_kernels.set_cubins(rewritten(cubins, tmp_path / "broken", NAME, change))
    with pytest.raises(EmulationError) as caught:
        run(random_case(16, 64, 784), num_sms=1)
    assert caught.value.kind == kind
