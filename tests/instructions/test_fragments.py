"""ldmatrix, stmatrix and movmatrix against the DSL's copy atoms, which give a thread's values as tile
indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cute_kernels.emulator import fragments
from cute_kernels.emulator.umma_descriptors import UnsupportedForm
from tests.instructions.dsl_oracle import cute, cutlass, offsets, traced

warp = pytest.importorskip("cutlass.cute.nvgpu.warp")

LOADS = [
    # modifiers, the DSL's operation, its count, bits of a source element
    ("m8n8.x{}.shared.b16", "LdMatrix8x8x16bOp", (False,), (1, 2, 4), 16),
    ("m8n8.x{}.trans.shared.b16", "LdMatrix8x8x16bOp", (True,), (1, 2, 4), 16),
    ("m16n16.x{}.trans.shared::cta.b8", "LdMatrix16x16x8bOp", (True,), (1, 2), 8),
    ("m16n16.x{}.trans.shared.b8x16.b4x16_p64", "LdMatrix16x16x8bOp", (True, 4), (1, 2), 4),
    ("m16n16.x{}.trans.shared.b8x16.b6x16_p32", "LdMatrix16x16x8bOp", (True, 6), (1, 2), 6),
    ("m8n16.x{}.shared.b8x16.b4x16_p64", "LdMatrix8x16x8bOp", (False, 4), (1, 2, 4), 4),
    ("m8n16.x{}.shared.b8x16.b6x16_p32", "LdMatrix8x16x8bOp", (False, 6), (1, 2, 4), 6),
]
STORES = [
    ("m8n8.x{}.shared.b16", "StMatrix8x8x16bOp", False, (1, 2, 4), 16),
    ("m8n8.x{}.trans.shared.b16", "StMatrix8x8x16bOp", True, (1, 2, 4), 16),
    ("m16n8.x{}.trans.shared.b8", "StMatrix16x8x8bOp", True, (1, 2, 4), 8),
]


def modifiers(text: str, count: int) -> tuple[str, ...]:
    return ("sync", "aligned", *text.format(count).split("."))


def values_of_threads(operation: Any, element: Any, load: bool) -> npt.NDArray[np.int64]:
    """[thread, value]: index of the value in the rows, one after the other."""

    def body() -> Any:
        atom = cute.make_copy_atom(operation, element)
        layout = atom.layout_dst_tv if load else atom.layout_src_tv
        return layout.shape, layout.stride

    (threads, values), (thread_stride, value_stride) = traced(body, arch="sm_120a")
    return offsets(threads, thread_stride)[:, None] + offsets(values, value_stride)[None, :]


def source_rows(
    random: np.random.Generator, rows: int, bits: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Elements [rows, 8 or 16] and the 16-byte rows that hold them; the padding is random."""
    data = random.integers(0, 256, (rows, 16), dtype=np.uint8)
    if bits == 16:
        return data.view(np.uint16), data
    elements = random.integers(0, 1 << bits, (rows, 16), dtype=np.uint8)
    stream = np.unpackbits(elements[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, -1)
    data[:, : 2 * bits] = np.packbits(stream, axis=-1, bitorder="little")
    return elements, data


@pytest.mark.parametrize(("text", "name", "arguments", "counts", "bits"), LOADS)
def test_loads(text: str, name: str, arguments: tuple[Any, ...], counts: tuple[int, ...], bits: int) -> None:
    random = np.random.default_rng(bits)
    for count in counts:
        operation = getattr(warp, name)(arguments[0], count, *arguments[1:])
        index = values_of_threads(operation, cutlass.Uint16 if bits == 16 else cutlass.Uint8, True)
        form = fragments.matrix_form("ldmatrix", modifiers(text, count))
        assert form.chunk_bytes == min(2 * bits, 16)
        elements, data = source_rows(random, form.rows, bits)
        assert index.max() + 1 == elements.size
        wanted = np.ascontiguousarray(elements.reshape(-1)[index]).view(np.uint32)
        registers = fragments.ldmatrix(form, data)
        assert len(registers) == form.registers
        np.testing.assert_array_equal(np.stack(registers, axis=1), wanted)


@pytest.mark.parametrize(("text", "name", "transposed", "counts", "bits"), STORES)
def test_stores(text: str, name: str, transposed: bool, counts: tuple[int, ...], bits: int) -> None:
    random = np.random.default_rng(bits)
    for count in counts:
        operation = getattr(warp, name)(transposed, count)
        element = np.uint16 if bits == 16 else np.uint8
        index = values_of_threads(operation, cutlass.Uint16 if bits == 16 else cutlass.Uint8, False)
        form = fragments.matrix_form("stmatrix", modifiers(text, count))
        registers = random.integers(0, 1 << 32, (count, 32), dtype=np.uint32)
        wanted = np.zeros(index.size, element)
        wanted[index] = np.ascontiguousarray(registers.T).view(element)
        rows = fragments.stmatrix(form, list(registers))
        assert rows.shape == (form.rows, 16)
        np.testing.assert_array_equal(rows.reshape(-1).view(element), wanted)


def test_movmatrix_transposes() -> None:
    matrix = np.random.default_rng(0).integers(0, 1 << 16, (8, 8), dtype=np.uint16)
    # Thread t holds row t // 4, columns 2 * (t % 4) and the next.
    moved = fragments.movmatrix(np.ascontiguousarray(matrix).view(np.uint32).reshape(32))
    np.testing.assert_array_equal(moved, np.ascontiguousarray(matrix.T).view(np.uint32).reshape(32))


@pytest.mark.parametrize(
    ("opcode", "text"),
    [
        ("ldmatrix", "m8n8.x3.shared.b16"),
        ("ldmatrix", "m8n8.x1.shared.b8"),
        ("ldmatrix", "m16n16.x1.shared.b8"),
        ("ldmatrix", "m16n16.x4.trans.shared.b8"),
        ("ldmatrix", "m8n16.x1.trans.shared.b8x16.b4x16_p64"),
        ("ldmatrix", "m8n16.x1.shared.b8x16"),
        ("ldmatrix", "m8n8.x1.shared.b16.b4x16_p64"),
        ("ldmatrix", "m8n8.x1.global.b16"),
        ("stmatrix", "m16n16.x1.trans.shared.b8"),
        ("stmatrix", "m16n8.x1.shared.b8"),
    ],
)
def test_unknown_forms(opcode: str, text: str) -> None:
    with pytest.raises(UnsupportedForm, match=f"{opcode}.sync.aligned.{text}"):
        fragments.matrix_form(opcode, ("sync", "aligned", *text.split(".")))
