"""The number formats inside a GGUF file, decoded to float32 with numpy.

A tensor is a run of blocks. A block holds `block_len` values in `block_bytes` bytes: small integers
and the scales that turn them into numbers, little endian, scales in float16:

    F32, F16, BF16   one value a block, no scale
    Q8_0             d, 32 int8                                 value = d * q
    Q4_0             d, 32 nibbles                              value = d * (q - 8)
    Q4_1             d, m, 32 nibbles                           value = d * q + m
    Q5_0             d, 32 fifth bits, 32 nibbles               value = d * (q - 16)
    Q5_1             d, m, 32 fifth bits, 32 nibbles            value = d * q + m
    Q4_K, Q5_K       d, dmin, 8 x (6-bit scale s, 6-bit min t)  value = d * s * q - dmin * t
                     over 8 runs of 32 values, 4 or 5 bits each
    Q6_K             16 runs of 16 values, int8 scale s a run   value = d * s * (q - 32)

In a nibble array, byte i holds value i in its low half and value i + 16 (i + 32 in K blocks) in its
high half. Not here: the file around the blocks (gguf.py), and quantising.
Source: the block layouts of ggml (ggml-common.h); proven equal to the `gguf` package in the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_CHUNK_VALUES = 1 << 22  # decoded at once: keeps the temporaries near 50 MB whatever the tensor


@dataclass(frozen=True)
class BlockFormat:
    """One number format.

    Args:
        name: ggml's name, such as `Q4_K`.
        block_len: values in a block.
        block_bytes: bytes of a block.
        decode: turns uint8 `(blocks, block_bytes)` into float32 `(blocks, block_len)`.
    """

    name: str
    block_len: int
    block_bytes: int
    decode: Callable[[np.ndarray], np.ndarray]


def dequantize(data: np.ndarray, block_format: BlockFormat) -> np.ndarray:
    """Decode whole blocks.

    Args:
        data: uint8, any shape, a whole number of blocks.
        block_format: how they are stored.

    Returns:
        float32, one dimension.
    """
    blocks = data.reshape(-1, block_format.block_bytes)
    values = np.empty((len(blocks), block_format.block_len), np.float32)
    step = max(1, _CHUNK_VALUES // block_format.block_len)
    for start in range(0, len(blocks), step):
        # A copy: the file's bytes need not lie where a float16 or float32 view may start.
        chunk = np.array(blocks[start : start + step])
        values[start : start + step] = block_format.decode(chunk)
    return values.reshape(-1)


def _f32(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f4")


def _f16(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    scale = _scales(blocks[:, :2])  # (blocks, 1)
    return scale * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    scale = _scales(blocks[:, :2])
    return scale * (_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8))


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    scale, low = _scales(blocks[:, :2]), _scales(blocks[:, 2:4])
    return scale * _nibbles(blocks[:, 4:]).astype(np.float32) + low


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    scale = _scales(blocks[:, :2])
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return scale * (values.astype(np.float32) - np.float32(16))


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    scale, low = _scales(blocks[:, :2]), _scales(blocks[:, 2:4])
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return scale * values.astype(np.float32) + low


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    scale, low = _scales_and_mins(blocks)
    values = _runs_of_32(blocks[:, 16:144])  # (blocks, 8, 32)
    return (scale * values.astype(np.float32) - low).reshape(len(blocks), 256)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    scale, low = _scales_and_mins(blocks)
    run = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (blocks[:, None, 16:48] >> run) & np.uint8(1)  # (blocks, 8, 32): bit j is run j's
    values = _runs_of_32(blocks[:, 48:176]) | (high << np.uint8(4))
    return (scale * values.astype(np.float32) - low).reshape(len(blocks), 256)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    num = len(blocks)
    low = blocks[:, :128].reshape(num, 2, 1, 64)  # two halves of 128 values
    low = (low >> _shifts(0, 4)) & np.uint8(15)  # (num, 2, 2, 64)
    high = blocks[:, 128:192].reshape(num, 2, 1, 32)
    high = (high >> _shifts(0, 2, 4, 6)) & np.uint8(3)  # (num, 2, 4, 32)
    values = low.reshape(num, 256) | (high.reshape(num, 256) << np.uint8(4))
    scale = _scales(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    centred = (values.astype(np.float32) - np.float32(32)).reshape(num, 16, 16)
    return (scale[:, :, None] * centred).reshape(num, 256)


def _scales(halves: np.ndarray) -> np.ndarray:
    """Read one float16 a block: uint8 (blocks, 2) to float32 (blocks, 1)."""
    return np.ascontiguousarray(halves).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Unpack the 32 values of a small block: uint8 (blocks, 16) to (blocks, 32)."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Unpack 32 bits to the place above a nibble: uint8 (blocks, 4) to (blocks, 32)."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _runs_of_32(packed: np.ndarray) -> np.ndarray:
    """Unpack the low bits of a K block: uint8 (blocks, 128) to (blocks, 8, 32).

    32 bytes hold two runs: the low halves, then the high halves.
    """
    pairs = (packed.reshape(len(packed), 4, 1, 32) >> _shifts(0, 4)) & np.uint8(15)
    return pairs.reshape(len(packed), 8, 32)


def _scales_and_mins(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read `d * s` and `dmin * t` of the 8 runs of a K block, each (blocks, 8, 1).

    The twelve bytes 4..16 hold sixteen 6-bit numbers: bytes 0-3 and 4-7 carry s and t of runs 0-3
    in their low six bits; bytes 8-11 carry the low four bits of s and t of runs 4-7, whose two
    high bits are the spare bits of bytes 0-3 and 4-7.
    """
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    s = [first & np.uint8(63), (third & np.uint8(15)) | ((first >> np.uint8(6)) << np.uint8(4))]
    t = [second & np.uint8(63), (third >> np.uint8(4)) | ((second >> np.uint8(6)) << np.uint8(4))]
    scale = _scales(blocks[:, 0:2]) * np.concatenate(s, axis=1).astype(np.float32)
    low = _scales(blocks[:, 2:4]) * np.concatenate(t, axis=1).astype(np.float32)
    return scale[:, :, None], low[:, :, None]


def _shifts(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint8)[None, None, :, None]


FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4, _f32),
    1: BlockFormat("F16", 1, 2, _f16),
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    12: BlockFormat("Q4_K", 256, 144, _q4_k),
    13: BlockFormat("Q5_K", 256, 176, _q5_k),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
    30: BlockFormat("BF16", 1, 2, _bf16),
}
"""The formats this project reads, by ggml's type number."""

UNREAD_NAMES: dict[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Names of ggml types that are not read here, for the error message."""
