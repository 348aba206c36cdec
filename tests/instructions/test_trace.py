"""The Chrome trace of a launch."""

from __future__ import annotations

import json
import pathlib
import struct

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError
from tests.instructions.kernels import module

COPY = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra DONE;
    mbarrier.init.shared.b64 [%r1+512], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+512], {expected};
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d1], 256, [%r1+512];
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p1, [%r1+512], 0;
    @!%p1 bra WAIT;
DONE:
"""


def launch(path: pathlib.Path, expected: int) -> None:
    device = Device("sm_90a", schedule="lazy", trace=path)
    memory = np.zeros(1024, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :][:512]
    device.register(memory.ctypes.data, memory.nbytes)
    pointer = struct.pack("<Q", memory.ctypes.data)
    text = module(COPY.format(expected=expected), "sm_90a")
    device.launch(text, "kernel", (2, 1, 1), (64, 1, 1), (1, 1, 1), 1024, [pointer, pointer, bytes(128)])


def test_rows_and_slices(tmp_path: pathlib.Path) -> None:
    launch(tmp_path / "trace.json", 256)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {(e["pid"], e["args"]["name"]) for e in events if e["ph"] == "M"}
    names = ("warp 0", "warp 1", "cp.async.bulk")
    assert rows == {(f"CTA ({i}, 0, 0)", name) for i in (0, 1) for name in names}
    slices = [e for e in events if e["ph"] == "X"]
    assert all(e["dur"] > 0 and e["ts"] >= 0 for e in slices)
    for cta in (0, 1):
        mine = [e for e in slices if e["pid"] == f"CTA ({cta}, 0, 0)"]
        copies = [e for e in mine if e["name"].startswith("cp.async.bulk")]
        turns = [e for e in mine if e["tid"] == 0]
        assert len(copies) == 1
        assert "PTX line" in copies[0]["args"]["issued at"]
        assert any("mbarrier" in e["args"]["waits for"] for e in turns)
        # The warp polls from the issue until the copy has landed.
        assert turns[-1]["ts"] + turns[-1]["dur"] >= copies[0]["ts"] + copies[0]["dur"]
    per_row = {(e["pid"], e["tid"]) for e in slices if e["tid"] < 1000}
    for row in per_row:
        ends = 0
        for e in (e for e in slices if (e["pid"], e["tid"]) == row):
            assert e["ts"] >= ends
            ends = e["ts"] + e["dur"]


def test_a_fault_leaves_its_trace(tmp_path: pathlib.Path) -> None:
    with pytest.raises(EmulationError):
        launch(tmp_path / "trace.json", 272)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
