"""Tensor maps: the bytes against those that the driver wrote on an H200 and those that the CuTe DSL writes."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from cute_kernels.emulator import tensor_map
from cute_kernels.emulator.tensor_map import TensorMap, TensorMapError, decode, encode
from tests.recorded import replay

EXAMPLE = TensorMap(
    "bf16", 0x7F0000000000, (256, 512), (512,), (64, 64), (1, 1), "none", "128B", "128B", "zero"
)

# The first 64 bytes of descriptors that nvidia-cutlass-dsl 4.8.1 encodes in make_tiled_tma_atom, which is where the
# codes of the sub-byte types and of the swizzle atoms can be seen; the rest it leaves as it finds it.
DSL = {
    "00000000007f00001265240020000000 00 ff000000ff0100000000000000000000 000000000000003f3f00000000000000": EXAMPLE,
    "00000000007f000092632c0080000000 00 ff010000ff0000000000000000000000 000000000000001f3f00000000000000": replace(
        EXAMPLE, dtype="f32", dims=(512, 256), strides=(2048,), box=(32, 64), swizzle="128B_atom_32B"
    ),
    "00000000007f00009265040008000000 00 ff000000ff0100000000000000000000 00000000000000ff3f00000000000000": replace(
        EXAMPLE, dtype="b4x16", strides=(128,), box=(256, 64)
    ),
    "00000000007f00001266040008000000 00 ff000000ff0100000000000000000000 000000000000007f3f00000000000000": replace(
        EXAMPLE, dtype="b4x16_p64", strides=(128,), box=(128, 64)
    ),
    "00000000007f0000926604000c000000 00 ff000000ff0100000000000000000000 000000000000007f3f00000000000000": replace(
        EXAMPLE, dtype="b6x16_p32", strides=(192,), box=(128, 64)
    ),
}


def test_encode_is_the_drivers() -> None:
    head, records = replay.lines("tensor_maps.jsonl.gz")
    accepted = 0
    for *spec, code, written in records:
        if code != 0:
            with pytest.raises(TensorMapError):
                replay.encode(spec, arch=head["arch"])
            continue
        data = replay.encode(spec, arch=head["arch"])
        assert data == bytes.fromhex(written).ljust(tensor_map.NBYTES, b"\0"), spec
        assert encode(**asdict(decode(data))) == data, spec
        accepted += 1
    assert accepted > 1000
    assert len(records) - accepted > 500


@pytest.mark.parametrize("text", DSL, ids=[m.dtype for m in DSL.values()])
def test_decode_what_the_dsl_encodes(text: str) -> None:
    head, zero, middle, last = text.split()
    half = bytes.fromhex(head + zero * 16 + middle + last)
    assert decode(half + b"\xc3" * 64) == DSL[text]
    differing = int.from_bytes(half, "little") ^ int.from_bytes(encode(**asdict(DSL[text]))[:64], "little")
    assert differing & ~(1 << 65 | 1 << 85) == 0


@pytest.mark.parametrize("dtype", tensor_map.DTYPES)
@pytest.mark.parametrize("swizzle", tensor_map.SWIZZLES)
def test_round_trip(dtype: str, swizzle: str) -> None:
    element = tensor_map.ELEMENT_TYPES[dtype]
    box0 = 128 if element.padded else 128 // element.bits  # 16 bytes
    fill = "nan" if element.floating else "zero"
    if element.padded and swizzle not in ("none", "128B", "128B_atom_32B"):
        swizzle = "none"  # the only other one they take is 128B_atom_64B, for b6x16_p32 alone
    m = replace(EXAMPLE, dtype=dtype, swizzle=swizzle, box=(box0, 3), element_strides=(1, 2), oob_fill=fill)
    assert decode(encode(**asdict(m))) == m


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float"}, ["'float'", "bf16"]),
        ({"dims": (), "strides": (), "box": (), "element_strides": ()}, ["rank 0", "1 to 5"]),
        ({"address": 0x1008}, ["0x1008", "16"]),
        ({"address": 1 << 57}, ["57 bits"]),
        ({"dims": (256, 2**32 + 1)}, ["dims[1] = 4294967297", "2**32"]),
        ({"strides": (520,)}, ["strides[0] = 520", "16"]),
        ({"strides": (1 << 40,)}, ["2**40"]),
        ({"strides": ()}, ["0 strides", "give 1"]),
        ({"box": (64, 257)}, ["box[1] = 257", "256"]),
        ({"box": (65, 8)}, ["130 bytes", "16 bytes"]),
        ({"box": (72, 8)}, ["144 bytes", "128 bytes"]),
        ({"element_strides": (1, 9)}, ["element_strides[1] = 9", "1 to 8"]),
        ({"swizzle": "96B"}, ["'96B'", "64B"]),
        ({"interleave": "16B"}, ["rank 2", "rank 3 to 5"]),
        ({"dtype": "u16", "oob_fill": "nan"}, ["u16", "zero"]),
        ({"dtype": "b4x16_p64", "box": (64, 8), "strides": (512,)}, ["64 elements", "128"]),
        ({"dtype": "b4x16_p64", "box": (128, 8), "dims": (64, 8)}, ["dims[0] = 64", "128"]),
        ({"dtype": "b6x16_p32", "box": (128, 8), "strides": (528,)}, ["528", "32"]),
        ({"dtype": "b4x16_p64", "box": (128, 8), "swizzle": "128B_atom_64B"}, ["128B_atom_64B", "128B_atom_32B"]),
        ({"swizzle": "none", "dtype": "u8", "box": (256, 256, 4), "dims": (9, 9, 9), "strides": (16, 16),
          "element_strides": (1, 1, 1)}, ["262144 bytes", "233472"]),
    ],
)  # fmt: skip
def test_refusals_say_what_and_why(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(TensorMapError) as refusal:
        encode(**(asdict(EXAMPLE) | changes))
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize("changes", [{"dtype": "b4x16", "box": (256, 4)}, {"swizzle": "128B_atom_32B"}])
def test_what_needs_a_newer_architecture(changes: dict[str, object]) -> None:
    arguments = asdict(EXAMPLE) | changes
    assert encode(**arguments, arch="sm_100a") == encode(**arguments)
    with pytest.raises(TensorMapError, match="sm_100 or newer"):
        encode(**arguments, arch="sm_90a")
    with pytest.raises(TensorMapError, match="sm_90 or newer"):
        encode(**asdict(EXAMPLE), arch="sm_80")


def test_decode_refuses_what_is_no_tiled_map() -> None:
    data = encode(**asdict(EXAMPLE))
    with pytest.raises(TensorMapError, match="127 bytes"):
        decode(data[:127])
    number = int.from_bytes(data, "little")
    parameters = {*range(4, 57), 65, *range(71, 86)}  # the address, the enumerations and the DSL's bits
    parameters |= {*range(96, 128), *range(224, 228), *range(256, 320), *range(416, 422), *range(440, 456)}
    for bit in set(range(512)) - parameters - {68, 69, 70}:
        with pytest.raises(TensorMapError):
            decode((number ^ 1 << bit).to_bytes(128, "little"))
    with pytest.raises(TensorMapError, match="rank 8"):
        decode((number | 7 << 68).to_bytes(128, "little"))
    assert decode((number ^ 1 << 600).to_bytes(128, "little")) == EXAMPLE
