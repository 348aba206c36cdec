"""The kernels that measure what a GPU reaches do the work that they are timed for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import cute_kernels
from perf import ceilings, suite
from perf.peers import HUMMING
from perf.suites import sm80
from perf.timing import Action, Times
from tests.building import Request, build

CPU = torch.device("cpu")
WORD = 0x12345678
UNTOUCHED = -1


@pytest.fixture(scope="module", autouse=True)
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cubins")
    result = build(Request(folder, ("sm_90a",), packages=("perf",), jobs=1), say=lambda line: None)
    assert not result.failures
    cute_kernels.set_cubins(folder)
    yield folder
    cute_kernels.set_cubins(None)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("more", [0, 37])
def test_read_reads_every_byte(place: int, more: int) -> None:
    with cute_kernels.emulate("sm_90a", schedule="random", seed=place):
        record = ceilings.kernels(CPU, "ceiling_read")[place]
        threads, cta = int(record.config["threads"]), int(record.config["cta_pieces"])
        pieces = cta + more  # a CTA with all of its pieces, and one that has few
        data = np.random.default_rng(place).integers(0, 2**32, (pieces, 4), dtype=np.uint32)
        for first in [*range(threads), *range(cta, min(cta + threads, pieces))]:
            last = cta if first < cta else pieces
            mine = data[first:last:threads]
            mine[-1, 3] ^= (
                np.bitwise_xor.reduce(mine, axis=None) ^ WORD
            )  # so that every thread finds the word
        out = torch.full((pieces,), UNTOUCHED, dtype=torch.int32)
        ceilings.read(record, torch.from_numpy(data.view(np.int32)), out, WORD)()
    stored = torch.full_like(out, UNTOUCHED)
    stored[:threads] = WORD
    stored[cta : cta + threads] = WORD
    assert torch.equal(out, stored)


def test_read_stores_nothing_else() -> None:
    with cute_kernels.emulate("sm_90a"):
        record = ceilings.kernels(CPU, "ceiling_read")[0]
        pieces = int(record.config["cta_pieces"])
        data = torch.randint(0, 2**31 - 1, (pieces, 4), dtype=torch.int32)
        out = torch.full((pieces,), UNTOUCHED, dtype=torch.int32)
        ceilings.read(record, data, out)()
    assert (out == UNTOUCHED).all()


@pytest.mark.parametrize("iterations", [1, 6])
def test_mma_sync_multiplies_every_chain(iterations: int) -> None:
    with cute_kernels.emulate("sm_90a"):
        (record,) = ceilings.kernels(CPU, "ceiling_mma_sync")
        operands = ceilings.mma_operands(record, CPU, seed=iterations)
        out = torch.full((2, record.block[0], 4), torch.nan)
        ceilings.mma_sync(record, operands, out, iterations)()
        wanted = ceilings.mma_wanted(operands, iterations)
    for warp in out.view(-1, 32, 4):
        torch.testing.assert_close(warp.double(), wanted, rtol=1e-5, atol=1e-4)


def test_the_work_of_mma_sync_is_counted() -> None:
    with cute_kernels.emulate("sm_90a"):
        (record,) = ceilings.kernels(CPU, "ceiling_mma_sync")
    warps, chains = record.config["warps"], record.config["chains"]
    assert record.block == (32 * warps, 1, 1)
    assert record.config["cta_flops"] == warps * chains * 2 * 16 * 8 * 16


def test_empty_does_nothing() -> None:
    with cute_kernels.emulate("sm_90a"):
        (record,) = ceilings.kernels(CPU, "ceiling_empty")
        ceilings.launch(record, 1, {}, {"unused": 0}, CPU)()


def test_kernels_that_are_not_built_are_named() -> None:
    with (
        cute_kernels.emulate("sm_100a"),
        pytest.raises(cute_kernels.KernelNotFoundError, match="--package perf"),
    ):
        ceilings.kernels(CPU, "ceiling_read")


def once(contenders: Mapping[str, Sequence[Action]], rounds: int, launches: int = 0) -> dict[str, Times]:
    """In place of timing: every launch is made, and the last contender is the fastest."""
    for actions in contenders.values():
        for action in actions:
            action()
    return {name: Times(9.0 - place, 8.0, 9.0) for place, name in enumerate(contenders)}


def test_the_suite_launches_what_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "interleaved", once)
    monkeypatch.setattr(suite.timing, "interleaved", once)
    monkeypatch.setattr(sm80, "COLD_BYTES", 10_000)
    monkeypatch.setitem(sys.modules, "humming.layer", None)
    selection = suite.Selection(10**6, "M=", ("48x80",), (1, 5), peers_only=True)
    with cute_kernels.emulate("sm_90a"):
        rows = [
            row
            for case in sm80.cases_on(CPU, selection)
            for row in suite.measure(case, suite.modes_of(case, suite.MODES, selection.l2_bytes), 2)
        ]
    assert [(row["case"], row["mode"]) for row in rows] == [
        (f"48x80 M={m}", mode) for m in (1, 5) for mode in ("cold", "warm")
    ]
    assert all(list(row["times_us"]) == [sm80.READ, sm80.CUBLAS] for row in rows)
    assert not any(row["wrong"] or row["wrong_peers"] for row in rows)
    assert [note.split(":")[0] for note in selection.notes] == [f"{HUMMING} is left out"]
