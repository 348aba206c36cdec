"""Times on a GPU, and what they were measured on."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

import cute_kernels

# GPU cycles that the stream is kept busy while the host queues a round of launches: far more than it needs, so that no
# time holds a gap in which the GPU waited for the host.
HEAD_START = 20_000_000


class Times(NamedTuple):
    """Microseconds of one launch: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


def interleaved(actions: Mapping[str, Sequence[Callable[[], object]]], rounds: int = 40) -> dict[str, Times]:
    """Time each action on the current stream with events, in turns, so that all see the same clocks and temperatures.

    actions: by name, the same launch on several sets of tensors, which the rounds go through one after another. Sets
    that are together larger than L2 make every launch find its input cold.
    """
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in actions}
    for sets in actions.values():  # load kernels, fill caches
        for action in sets:
            action()
    torch.cuda.synchronize()
    for start in range(0, rounds, 10):
        torch.cuda._sleep(HEAD_START)
        for turn in range(start, min(start + 10, rounds)):
            for name, sets in actions.items():
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                sets[turn % len(sets)]()
                end.record()
                events[name].append((begin, end))
        torch.cuda.synchronize()
    return {name: _summary([1e3 * a.elapsed_time(b) for a, b in pairs]) for name, pairs in events.items()}


def _summary(microseconds: list[float]) -> Times:
    low, median, high = statistics.quantiles(microseconds, n=4)
    return Times(median, low, high)


def environment() -> dict[str, str | int]:
    """Return what a measurement depends on: GPU, driver and versions."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "cute_kernels": cute_kernels.__version__,
    }


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
