"""Encoding of GGUF number formats, against the `gguf` package byte for byte."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llmlab.errors import ModelError
from llmlab.model.gguf_quantize import encoded, format_named

NAMES = ["F32", "F16", "BF16", "Q8_0"]


def ours(values: np.ndarray, name: str) -> np.ndarray:
    parts = encoded(torch.from_numpy(values), format_named(name), "w")
    return np.concatenate(list(parts))


def theirs(values: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # 1 / d overflows where d is subnormal
        packed = gguf.quantize(values, gguf.GGMLQuantizationType[name])
    return packed.view(np.uint8).reshape(-1)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_random_weights_are_the_gguf_packages(name: str):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(512, 256)).astype(np.float32)
    values *= 10.0 ** rng.integers(-9, 4, size=(512, 1), dtype=np.int64)
    np.testing.assert_array_equal(ours(values, name), theirs(values, name))


@given(arrays.arrays(np.float32, (2, 32), elements=st.floats(-6e4, 6e4, width=32)))
def test_bytes_of_any_finite_block_are_the_gguf_packages(values: np.ndarray):
    for name in NAMES:
        np.testing.assert_array_equal(ours(values, name), theirs(values, name))


def test_halves_round_away_from_zero_as_in_ggml():
    """With a largest magnitude of 127 a number is its own step: 0.5 becomes 1, -2.5 becomes -3."""
    values = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997] + [0.0] * 24], "f4")
    assert ours(values, "Q8_0")[2:10].view(np.int8).tolist() == [127, 1, 2, 3, -1, -2, -3, 0]
    np.testing.assert_array_equal(ours(values, "Q8_0"), theirs(values, "Q8_0"))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights_are_widened_first(name: str):
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = np.concatenate(list(encoded(weights, format_named(name), "w")))
    np.testing.assert_array_equal(got, theirs(weights.float().numpy(), name))


def test_a_long_tensor_comes_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmlab.model.gguf_quantize._CHUNK_VALUES", 64)
    values = np.random.default_rng(0).normal(size=(3, 96)).astype(np.float32)
    np.testing.assert_array_equal(ours(values, "Q8_0"), theirs(values, "Q8_0"))


@pytest.mark.parametrize(
    ("value", "name"), [(7e4, "F16"), (float("nan"), "F16"), (1e7, "Q8_0"), (float("inf"), "Q8_0")]
)
def test_a_number_that_does_not_fit_is_named(value: float, name: str):
    values = np.zeros((1, 32), np.float32)
    values[0, 3] = value
    with pytest.raises(ModelError, match=rf"w has the number {value}, which {name} cannot hold"):
        ours(values, name)
