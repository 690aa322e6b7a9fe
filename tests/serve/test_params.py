import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import ConfigError, RequestError
from llmlab.serve.params import EngineConfig, SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("max_tokens", -1),
        ("max_tokens", 2.0),
        ("seed", 2**63),
        ("logprobs", 21),
        ("logprobs", True),
        ("prompt_logprobs", -1),
        ("min_tokens", -1),
        ("priority", 1.0),
        ("priority", -(2**31) - 1),
        ("cache_salt", ""),
        ("cache_salt", 3),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop_token_ids", (-1,)),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {1: math.nan}),
    ],
)
def test_out_of_range_names_the_field_and_the_value(name, value):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    at_fault = value
    if isinstance(value, tuple):
        at_fault = value[0]
    elif isinstance(value, dict):
        at_fault = next((key for key in value if key != 1), value.get(1))
    assert caught.value.param == name
    assert caught.value.status == 400
    assert name in str(caught.value)
    assert repr(at_fault) in str(caught.value)


def test_min_tokens_above_max_tokens_is_refused():
    with pytest.raises(RequestError, match="min_tokens=5 is above max_tokens=4"):
        SamplingParams(min_tokens=5, max_tokens=4)


@pytest.mark.parametrize(
    "good",
    [
        {"temperature": 0},
        {"temperature": 2, "top_p": 1, "min_p": 1},
        {"max_tokens": 0, "prompt_logprobs": 0},
        {"seed": -(2**63)},
        {"logit_bias": {5: -100}},
        {"stop": ("a", "b"), "stop_token_ids": (0,)},
    ],
)
def test_the_ends_of_the_ranges_are_usable(good):
    for name, value in good.items():
        assert getattr(SamplingParams(**good), name) == value


NUMERIC = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "prompt_logprobs",
)


@given(st.sampled_from(NUMERIC), st.one_of(st.floats(), st.integers(), st.booleans()))
def test_any_number_is_taken_or_refused_with_its_name(name, value):
    try:
        params = SamplingParams(**{name: value})
    except RequestError as error:
        refused = error.param
    else:
        refused = None
        assert math.isfinite(getattr(params, name))
    assert refused in (None, name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"page_len": 0}, "page_len=0 must be at least 1"),
        ({"num_pages": 0}, "num_pages=0 must be at least 1, or left out"),
        ({"max_batch_tokens": 32, "max_running": 32}, "max_batch_tokens=32 must be above"),
    ],
)
def test_an_unusable_engine_config_says_why(values, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(model=Path("model"), **values)
