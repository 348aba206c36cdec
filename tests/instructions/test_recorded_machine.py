"""Memory, synchronisation, copies and exchanges on the emulator against what an H200 gave for the same kernels.

tests/recorded/machine.jsonl.gz, written by record_machine.py: the small kernels of tests/recorded/machine_cases, whose
whole output is equal bit for bit, whatever the schedule.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError
from tests.recorded import replay
from tests.recorded.machine_cases import Case, cases

_, RECORDS = replay.lines("machine.jsonl.gz")
RECORDED: dict[str, tuple[int, dict[str, Any]]] = {name: (crc, outcome) for name, crc, outcome in RECORDS}
CASES = list(cases())
# What the driver's compiler makes an integer addition of; the emulator refuses it.
REFUSED = [f"{o}.shared::cluster.add.noftz.{type}" for o in ("atom", "red") for type in ("f16x2", "bf16x2")]


def emulate(case: Case, schedule: str) -> bytes:
    """What `out` holds after the launch that was recorded."""
    source = np.zeros(len(case.input) + 128, np.uint8)
    source = source[-source.ctypes.data % 128 :][: len(case.input)]
    source[:] = np.frombuffer(case.input, np.uint8)
    out = np.zeros(4 * case.out_words + 16, np.uint8)
    out = out[-out.ctypes.data % 16 :][: 4 * case.out_words]
    out[:] = np.frombuffer(case.output, np.uint8)
    device = Device("sm_90a", schedule=schedule, step_limit=1_000_000)
    for array in (source, out):
        device.register(array.ctypes.data, array.nbytes)
    parameters = case.parameter_bytes
    if case.tensor_map:
        parameters = replay.encode(case.tensor_map, source.ctypes.data)
    params = [struct.pack("<Q", array.ctypes.data) for array in (out, source)]
    shape = (case.cluster, 1, 1)
    device.launch(case.text, "kernel", shape, (case.threads, 1, 1), shape, case.shared, [*params, parameters])
    return out.tobytes()


def test_every_case_is_recorded() -> None:
    assert [name for name, _, _ in RECORDS] == [case.name for case in CASES]


@pytest.mark.parametrize("case", [c for c in CASES if c.name in REFUSED], ids=lambda case: case.name)
def test_refused(case: Case) -> None:
    memory, given = (np.frombuffer(data, np.uint32)[:32] for data in (case.start, case.input))
    recorded = np.frombuffer(base64.b64decode(RECORDED[case.name][1]["out"]), np.uint32)[:32]
    assert (recorded == memory + given).all()
    with pytest.raises(EmulationError, match="compiles to an integer addition"):
        emulate(case, "eager")


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in REFUSED], ids=lambda case: case.name)
def test_case(case: Case) -> None:
    crc, outcome = RECORDED[case.name]
    assert zlib.crc32(case.text.encode()) == crc, (
        "the kernel has changed since it was recorded; record it again"
    )
    expected = base64.b64decode(outcome["out"])
    for schedule in ("eager", "lazy", "random"):
        assert emulate(case, schedule) == expected, schedule
