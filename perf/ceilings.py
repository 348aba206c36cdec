"""What a GPU reaches, measured by kernels of the harness: reads, mma.sync out of registers, an empty launch.

`python -m cute_kernels build --package perf` puts the cubins beside the others, where the runtime finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cute_kernels.runtime import context
from cute_kernels.runtime.arguments import Argument, pack
from cute_kernels.runtime.backend import Launcher, Region
from cute_kernels.runtime.errors import KernelNotFoundError
from cute_kernels.runtime.manifest import KernelRecord
from perf.timing import Action, Graph, interleaved

NOT_FOUND = 0x5EED5EED  # a word that the exclusive or of random data is not: nothing is stored
ITERATIONS = 16384  # of mma.sync: 0.9 ms on an H200
EMPTY_LAUNCHES = 200


def kernels(device: torch.device, family: str) -> list[KernelRecord]:
    """The kernels of a family; raises KernelNotFoundError where they are not built."""
    found = context.library().find(family, context.backend_for(device).archs)
    if not found:
        raise KernelNotFoundError(
            f"{context.library().folder} holds no {family}; build it: python -m cute_kernels build --package perf"
        )
    return found


def launch(
    record: KernelRecord,
    grid: int,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Argument],
    device: torch.device,
) -> Action:
    """A launch of a kernel, on whatever stream is current when it is called. It keeps the tensors alive."""
    backend, held = context.backend_for(device), dict(tensors)
    handle = backend.load(context.library(), record)
    addresses = {name: tensor.data_ptr() for name, tensor in held.items()}
    params = pack(record.params, {**addresses, **numbers}, backend.encode_tensor_map)
    memory = [Region(tensor.data_ptr(), tensor.nbytes, name) for name, tensor in held.items()]
    launchers: dict[int, Launcher] = {}

    def action(_: object = held) -> None:
        stream = backend.stream()
        if stream not in launchers:
            launchers[stream] = backend.bind(handle, (grid, 1, 1), params, memory, stream)
        launchers[stream]()

    return action


def read(record: KernelRecord, data: torch.Tensor, out: torch.Tensor, wanted: int = NOT_FOUND) -> Action:
    """A launch that reads a tensor of whole 16-byte pieces.

    out: int32, one for each piece; only threads whose pieces combine to `wanted` write to it.
    """
    pieces = data.nbytes // 16
    grid = -(-pieces // int(record.config["cta_pieces"]))
    return launch(record, grid, {"data": data, "out": out}, {"wanted": wanted, "pieces": pieces}, data.device)


def plain_read(sets: Sequence[torch.Tensor]) -> list[Action]:
    """Launches that read one of the sets each, by the kernel that is the fastest for their size."""
    out = torch.empty(sets[0].nbytes // 16, dtype=torch.int32, device=sets[0].device)
    readers = {
        record.name: [read(record, data, out) for data in sets]
        for record in kernels(sets[0].device, "ceiling_read")
    }
    times = interleaved(readers, rounds=3)
    return readers[min(times, key=lambda name: times[name].median)]


def mma_sync(record: KernelRecord, operands: torch.Tensor, out: torch.Tensor, iterations: int) -> Action:
    """A launch of as many CTAs as `out` holds totals for.

    operands: uint32 or int32 [words, 32], BF16 pairs. out: float32 [CTAs, threads, 4].
    """
    tensors = {"operands": operands, "out": out}
    return launch(record, len(out), tensors, {"iterations": iterations}, operands.device)


def mma_operands(record: KernelRecord, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Random operands for `mma_sync`."""
    random = torch.Generator(device=device).manual_seed(seed)
    shape = (int(record.config["words"]), 32, 2)
    return torch.randn(shape, device=device, generator=random).to(torch.bfloat16).view(torch.int32)[..., 0]


def mma_wanted(operands: torch.Tensor, iterations: int) -> torch.Tensor:
    """What each warp's lanes must store, float64 [32, 4]: the sum over the chains of A @ B, `iterations` times.

    Where an element of a fragment lies: see cute_kernels.device.mma_sync.
    """
    pairs = operands.view(torch.bfloat16).view(len(operands), 8, 4, 2).double()  # [word, g, t, half]
    # a[rows, k], k = 2 t + half, + 8 for words 2 and 3.
    rows = [torch.cat([pairs[i], pairs[i + 2]], dim=1).reshape(8, 16) for i in (0, 1)]
    b = sum(
        torch.cat([pairs[i], pairs[i + 1]], dim=1).reshape(8, 16) for i in range(4, len(operands), 2)
    )  # [column g, k]
    assert isinstance(b, torch.Tensor)
    product = iterations * (torch.cat(rows) @ b.T)  # [16, 8]
    upper, lower = (part.reshape(8, 4, 2) for part in product.split(8))
    return torch.cat([upper, lower], dim=2).reshape(32, 4)


def measured(rounds: int) -> dict[str, float]:
    """mma_sync_tflop_s: m16n8k16 BF16 with FP32 sums, one CTA on each multiprocessor; empty_us: a kernel that does
    nothing, in a graph. Both on the current CUDA device.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    (multiply,), (nothing,) = kernels(device, "ceiling_mma_sync"), kernels(device, "ceiling_empty")
    ctas = context.backend_for(device).num_sms
    operands = mma_operands(multiply, device)
    out = torch.full((ctas, multiply.block[0], 4), torch.nan, device=device)
    action = mma_sync(multiply, operands, out, ITERATIONS)
    action()
    wanted = mma_wanted(operands, ITERATIONS)
    error = (out.view(-1, 32, 4).double() - wanted).norm() / wanted.norm() / len(out.view(-1, 32, 4)) ** 0.5
    if not error < 0.01:  # each of ITERATIONS additions may cut off a bit of a float32
        raise RuntimeError(f"{multiply.name} computes wrong sums: relative error {error:.1e}")
    times = interleaved({"multiply": [action]}, rounds)["multiply"]
    empty = Graph([launch(nothing, 1, {}, {"unused": 0}, device)], launches=EMPTY_LAUNCHES)
    flops = ITERATIONS * int(multiply.config["cta_flops"]) * ctas
    return {
        "mma_sync_tflop_s": round(flops / times.median / 1e6, 1),
        "empty_us": round(sorted(empty.time() for _ in range(rounds))[rounds // 2], 3),
    }


def recorded(families: Sequence[str]) -> list[dict[str, object]]:
    """What the cubins in use hold of these families for the current CUDA device, as the manifest names it."""
    device = torch.device("cuda", torch.cuda.current_device())
    library, archs = context.library(), context.backend_for(device).archs
    return [
        {"name": r.name, "arch": r.arch, "config": dict(r.config), "cubin_sha256": r.cubin_sha256}
        for family in families
        for r in library.find(family, archs)
    ]
