"""What `python -m tests.gpu.device_code` writes for a Hopper GPU compiles: a case of each kind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gpu import device_code


def test_a_case_of_each_kind(tmp_path: Path) -> None:
    to = device_code.Writer(tmp_path)
    device_code.add_ring(to, 2)
    device_code.add_tiles(to, (64, 128, 1), 100, 400, 3)
    device_code.add_transpose(to, 1)
    device_code.add_store(to, "f32")
    to.close()
    cases = json.loads((tmp_path / "cases.json").read_text())
    assert [case["name"] for case in cases] == [
        "ring_2",
        "tiles_64x128_1_100x400",
        "transpose_1",
        "store_f32_plain",
    ]
    for case in cases:
        assert (tmp_path / f"{case['name']}.cubin").read_bytes()[:4] == b"\x7fELF"
        assert (tmp_path / f"{case['name']}.npz").is_file()
