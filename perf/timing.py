"""Times on a GPU: graphs of launches over rotating sets of tensors, in turns with their peers; and the ceilings."""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

import cute_kernels

Action = Callable[[], object]  # launches on the current stream, and never waits for the device

LAUNCHES = 20  # that a graph holds at least
LONG_US = 1000.0  # a launch that takes longer is not repeated for the sake of LAUNCHES
HOST_CALLS = 200  # that are timed on the host together
COLD_FACTOR = 3  # the sets that take turns are together so many times as large as L2
CEILING_BYTES = 2**31
CEILING_MATRIX = 8192


class Times(NamedTuple):
    """Microseconds of one launch: the median over the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float


def sets_for(nbytes: int, l2_bytes: int) -> int:
    """How many sets of tensors of so many bytes must take turns for each launch to find its own cold in L2."""
    return max(2, -(-COLD_FACTOR * l2_bytes // nbytes))


class Graph:
    """A CUDA graph of launches that go through the actions one after another.

    actions: the same launch on several sets of tensors; one set: it finds its tensors warm, as far as L2 holds them.
    launches: that it holds at least, unless they are long.
    """

    def __init__(self, actions: Sequence[Action], launches: int = LAUNCHES) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # loads kernels and plans launches, which a capture must not do
            for action in actions:
                action()
            begin, end = events()
            begin.record()
            for action in actions:
                action()
            end.record()
        torch.cuda.synchronize()
        long = 1e3 * begin.elapsed_time(end) / len(actions) > LONG_US
        self.launches = len(actions) * (1 if long else -(-launches // len(actions)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for launch in range(self.launches):
                actions[launch % len(actions)]()
        self._graph.replay()
        torch.cuda.synchronize()

    def time(self) -> float:
        """Replay it once; return microseconds a launch."""
        begin, end = events()
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end) / self.launches


def events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def interleaved(
    contenders: Mapping[str, Sequence[Action]], rounds: int, launches: int = LAUNCHES
) -> dict[str, Times]:
    """Times of all contenders on the GPU, one replay of each in a turn.

    contenders: by name, what Graph takes. rounds: replays of each, at least 2. launches: as Graph takes them.
    """
    graphs = {name: Graph(actions, launches) for name, actions in contenders.items()}
    return in_turns({name: graph.time for name, graph in graphs.items()}, rounds)


def on_host(contenders: Mapping[str, Sequence[Action]], rounds: int) -> dict[str, Times]:
    """CPU time that a launch takes of the thread that makes it, from the call to its return."""
    for actions in contenders.values():
        host_time(actions[0])
    return in_turns({name: partial(host_time, actions[0]) for name, actions in contenders.items()}, rounds)


def host_time(action: Action) -> float:
    """CPU microseconds of a call, over HOST_CALLS of them: fewer than a stream queues, so that none waits."""
    torch.cuda.synchronize()
    begin = time.thread_time_ns()
    for _ in range(HOST_CALLS):
        action()
    spent = time.thread_time_ns() - begin
    torch.cuda.synchronize()
    return spent / HOST_CALLS / 1e3


def in_turns(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Times]:
    """Times of all; they take turns and change who begins, so that all see the same clocks and heat."""
    names = list(timers)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(timers[name]())
    return {name: summary(values) for name, values in taken.items()}


def summary(microseconds: Sequence[float]) -> Times:
    low, median, high = statistics.quantiles(microseconds, n=4)
    return Times(median, low, high)


def copy(nbytes: int) -> Action:
    """A launch that reads and writes so many bytes in all, a multiple of 8, each half of them.

    It is a kernel of torch's, for its copies become nodes of a graph that the driver runs at two thirds of the speed
    once they are large.
    """
    source = torch.randint(-(2**31), 2**31 - 1, (nbytes // 8,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return lambda: torch.bitwise_not(source, out=target)


def ceilings(rounds: int) -> dict[str, float]:
    """What this GPU reaches now: bandwidths in TB/s over 2 GiB, and cuBLAS' bf16 products of 8192^3 in TFLOP/s.

    read_tb_s: torch.sum of float32. copy_tb_s: `copy`, bytes read and written. matmul_tflop_s: torch.mm on
    random data.
    """
    source = torch.rand(CEILING_BYTES // 4, device="cuda")
    total = torch.empty((), device="cuda")
    n = CEILING_MATRIX
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    d = torch.empty_like(a)
    times = interleaved(
        {
            "read": [lambda: torch.sum(source, 0, out=total)],
            "copy": [copy(2 * CEILING_BYTES)],
            "matmul": [lambda: torch.mm(a, b, out=d)],
        },
        rounds,
    )
    return {
        "read_tb_s": round(CEILING_BYTES / times["read"].median / 1e6, 3),
        "copy_tb_s": round(2 * CEILING_BYTES / times["copy"].median / 1e6, 3),
        "matmul_tflop_s": round(2 * n**3 / times["matmul"].median / 1e6, 1),
    }


def environment() -> dict[str, str | int]:
    """Return what a measurement depends on: GPU, driver and versions."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver, power, clock = smi("driver_version", "power.limit", "clocks.max.sm")
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "power_limit": power,
        "max_sm_clock": clock,
        "driver": driver,
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cute_kernels": cute_kernels.__version__,
    }


def smi(*fields: str) -> list[str]:
    """What nvidia-smi says of the first GPU; "unknown" for each field where it cannot."""
    tool = shutil.which("nvidia-smi")
    unknown = ["unknown"] * len(fields)
    if tool is None:
        return unknown
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    values = [value.strip() for value in answer.split(",")]
    return values if len(values) == len(fields) else unknown
