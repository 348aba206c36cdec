"""Scale words transposed by a warp, on the emulator, are the atoms that tcgen05.cp 32x128b.warpx4 reads."""

from __future__ import annotations

import tempfile

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Constexpr, Int32

from cute_kernels.device import umma
from cute_kernels.emulator import Device


@cute.kernel
def transpose(source: cutlass.Pointer, target: cutlass.Pointer, atoms: Constexpr[int]) -> None:
    """Int32 [atoms * 128] there and, transposed in shared memory, back."""
    words = cutlass.Array(Int32, atoms * 128, space=cutlass.AddressSpace.smem, alignment=16)
    lane = cute.arch.lane_idx()
    for i in cutlass.range_constexpr(atoms * 4):
        words[i * 32 + lane] = (source + i * 32 + lane).load()
    cute.arch.sync_warp()
    umma.transpose_scales(words, atoms)
    cute.arch.sync_warp()
    for i in cutlass.range_constexpr(atoms * 4):
        (target + i * 32 + lane).store(words[i * 32 + lane])


@cute.jit
def entry(source: cutlass.Pointer, target: cutlass.Pointer, atoms: Constexpr[int]) -> None:
    transpose(source, target, atoms).launch(grid=(1, 1, 1), block=(32, 1, 1))


@pytest.mark.parametrize("atoms", [1, 6])
def test_a_row_is_one_of_four_in_a_lane_s_16_bytes(atoms: int) -> None:
    pointer = cute.runtime.make_ptr(Int32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_100a --keep-ptx --dump-dir={folder}"
        text = cute.compile(entry, pointer, pointer, atoms, options=options).__ptx__
    source = np.random.default_rng(0).integers(-(2**31), 2**31, (atoms, 128)).astype(np.int32)
    target = np.zeros_like(source)
    device = Device("sm_100a", num_sms=1)
    for array in (source, target):
        device.register(array.ctypes.data, array.nbytes)
    params = [array.ctypes.data.to_bytes(8, "little") for array in (source, target)]
    device.launch(text, None, (1, 1, 1), (32, 1, 1), (1, 1, 1), atoms * 512, params)
    # An atom is 32 rows of 16 bytes: row r of the tile is word r // 32 of row r % 32.
    for row in range(128):
        assert (target[:, row % 32 * 4 + row // 32] == source[:, row]).all()
