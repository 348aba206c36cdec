"""The device code that kernels share, on a Hopper GPU: what `python -m tests.gpu.device_code build/device_code` wrote.

CUTE_KERNELS_DEVICE_CODE names another folder. No DSL is needed here.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cute_kernels.emulator import tensor_map
from tests.recorded.cuda_driver import Driver

FOLDER = Path(os.environ.get("CUTE_KERNELS_DEVICE_CODE", Path(__file__).parents[2] / "build" / "device_code"))


def _missing() -> str:
    """Why these tests cannot run here; "" if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() != (9, 0):
        return "the cubins are for sm_90a"
    if not (FOLDER / "cases.json").exists():
        return f"{FOLDER} has no cases; `python -m tests.gpu.device_code` writes them where the DSL is"
    return ""


MISSING = _missing()
CASES: list[dict[str, Any]] = [] if MISSING else json.loads((FOLDER / "cases.json").read_text())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def _encode(driver: Driver, spec: dict[str, Any], address: int) -> bytes:
    code, data = driver.encode_tiled(
        tensor_map.DTYPES.index(spec["dtype"]),
        2,
        address,
        spec["dims"],
        [spec["pitch"]],
        spec["box"],
        [1, 1],
        0,
        tensor_map.SWIZZLES.index(spec["swizzle"]),
        0,
        0,
    )
    assert code == 0
    return data


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_leaves_what_the_emulator_says(case: dict[str, Any]) -> None:
    driver = Driver()
    arrays = dict(np.load(FOLDER / f"{case['name']}.npz"))
    held = {name: array for name, array in arrays.items() if not name.startswith("expected_")}
    places = {name: driver.allocate(array.nbytes) for name, array in held.items()}
    for name, array in held.items():
        driver.upload(places[name], array.tobytes())
    params = []
    for param in case["params"]:
        if "array" in param:
            params.append(places[param["array"]].to_bytes(8, "little"))
        elif "map" in param:
            params.append(_encode(driver, param, places[param["map"]]))
        else:
            params.append(param["i32"].to_bytes(4, "little"))
    _launch(driver, case, params)
    for name, array in held.items():
        if name.startswith("scratch_"):
            continue
        result = np.frombuffer(driver.download(places[name], array.nbytes), array.dtype).reshape(array.shape)
        assert np.array_equal(result, arrays.get(f"expected_{name}", array)), name


def _launch(driver: Driver, case: dict[str, Any], params: list[bytes]) -> None:
    """Launches a cubin's kernel; a tensor map lies at a multiple of 64 bytes, as the driver wants it."""
    module = ctypes.c_void_p()
    driver.call("cuModuleLoadData", ctypes.byref(module), (FOLDER / f"{case['name']}.cubin").read_bytes())
    kernel = driver.kernel(module, case["entry"], case["shared"])
    room = [ctypes.create_string_buffer(len(p) + 64) for p in params]
    starts = [-(-ctypes.addressof(r) // 64) * 64 for r in room]
    for start, data in zip(starts, params, strict=True):
        ctypes.memmove(start, data, len(data))
    table = (ctypes.c_void_p * len(starts))(*starts)
    threads, shared = case["threads"], case["shared"]
    driver.call("cuLaunchKernel", kernel, case["grid"], 1, 1, threads, 1, 1, shared, None, table, None)
    driver.call("cuCtxSynchronize")
