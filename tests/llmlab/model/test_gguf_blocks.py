"""Decoding of GGUF number formats, against the `gguf` package."""

import gguf
import numpy as np
import pytest

from llmlab.model.gguf_blocks import FORMATS, UNREAD_NAMES, BlockFormat, dequantize

FLOATS = {"F32", "F16", "BF16"}
QUANTIZED = [item for item in FORMATS.items() if item[1].name not in FLOATS]


@pytest.mark.parametrize(
    ("number", "block_format"), FORMATS.items(), ids=lambda x: getattr(x, "name", "")
)
def test_names_and_sizes_are_ggmls(number: int, block_format: BlockFormat) -> None:
    kind = gguf.GGMLQuantizationType(number)
    assert kind.name == block_format.name
    assert gguf.GGML_QUANT_SIZES[kind] == (block_format.block_len, block_format.block_bytes)


def test_names_of_unread_types_are_ggmls() -> None:
    for number, name in UNREAD_NAMES.items():
        assert gguf.GGMLQuantizationType(number).name == name


@pytest.mark.parametrize(
    ("number", "block_format"), FORMATS.items(), ids=lambda x: getattr(x, "name", "")
)
def test_random_bytes_decode_to_the_same_bits(number: int, block_format: BlockFormat) -> None:
    """Every bit pattern of the quants, and random finite scales: equal bit for bit."""
    rng = np.random.default_rng(number)
    rows, blocks_a_row = 7, 5
    data = rng.integers(0, 256, (rows, blocks_a_row, block_format.block_bytes), dtype=np.uint8)
    # Clear the top exponent bit of every float16 that could be infinite or nan.
    for at in _scale_bytes(block_format.name):
        data[..., at + 1] &= 0xBF
    if block_format.name in FLOATS:
        data[..., -1] &= 0xBF
    data = data.reshape(rows, -1)
    expected = gguf.dequantize(data, gguf.GGMLQuantizationType(number))
    got = dequantize(data, block_format).reshape(expected.shape)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def _scale_bytes(name: str) -> list[int]:
    return {"Q8_0": [0], "Q4_0": [0], "Q5_0": [0], "Q4_1": [0, 2], "Q5_1": [0, 2],
            "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}.get(name, [])  # fmt: skip


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights_come_back_within_half_a_step(name: str) -> None:
    number, block_format = next((n, f) for n, f in FORMATS.items() if f.name == name)
    weights = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
    packed = gguf.quantize(weights, gguf.GGMLQuantizationType(number))
    back = dequantize(packed, block_format).reshape(weights.shape)
    levels = {"Q8_0": 127, "Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31}[name]
    # One step: the largest magnitude (or the span, at most twice it) over the number of levels.
    step = 2 * np.abs(weights).max() / levels
    assert np.abs(back - weights).max() <= step


def test_a_tensor_longer_than_one_chunk_is_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmlab.model.gguf_blocks._CHUNK_VALUES", 64)
    weights = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(dequantize(weights.view(np.uint8), FORMATS[0]), weights)
