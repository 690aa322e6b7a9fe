"""What a request body may say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmlab.errors import RequestError
from llmlab.serve.schema import IGNORED, INERT, ChatRequest, CompletionRequest

USER = {"role": "user", "content": "hi"}


def completion(**fields):
    return CompletionRequest.model_validate({"prompt": "x", **fields})


def chat(**fields):
    return ChatRequest.model_validate({"messages": [USER], **fields})


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_four_forms_of_a_prompt(prompt, read):
    assert completion(prompt=prompt).prompt == read


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": [True]},
        {"prompt": [1, "a"]},
        {"prompt": [1.0]},
        {"prompt": 1},
        {"prompt": {"a": 1}},
        {"prompt": "\ud800"},
        {"prompt": ["x"] * 1025},
        {"stop": ["a"] * 5},
        {"stop": [1]},
        {"n": 0},
        {"n": 10**30},
        {"n": True},
        {"max_tokens": -1},
        {"max_tokens": "5"},
        {"logprobs": 21},
        {"logprobs": True},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"seed": 2**63},
        {"priority": 2**31},
        {"cache_salt": ""},
        {"cache_salt": "x" * 257},
        {"stream": 1},
        {"logit_bias": {"1": "x"}},
    ],
)
def test_wrong_types_and_sizes_are_refused(fields):
    with pytest.raises(ValidationError) as caught:
        completion(**fields)
    assert caught.value.errors()[0]["loc"][0] == next(iter(fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperatures": 0.5}, "did you mean 'temperature'"),
        ({"temperatures": None}, "did you mean 'temperature'"),
        ({"tools": [{"type": "function"}]}, "does not support 'tools'"),
        ({"response_format": {"type": "json_object"}}, "does not support 'response_format'"),
        ({"best_of": 3}, "does not support 'best_of'"),
        ({"store": True}, "does not support 'store'"),
        ({"suffix": "end"}, "does not support 'suffix'"),
        ({"reasoning_effort": "low"}, "does not support 'reasoning_effort'"),
        ({"logit_bias": {"x": 1}}, "token ids such as '42'"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "at most 1024"),
        ({"stream_options": {"include_usage": True}}, "needs stream=true"),
    ],
)
def test_unknown_and_unsupported_are_refused_by_name(fields, message):
    with pytest.raises(RequestError, match=message) as caught:
        completion(**fields)
    assert caught.value.param == next(iter(fields))
    assert caught.value.status == 400


def test_harmless_fields_are_accepted():
    plain = chat()
    assert chat(**dict.fromkeys(IGNORED, "anything")) == plain
    for name, values in INERT.items():
        for value in (*values, None):
            assert chat(**{name: value}) == plain


def test_null_means_the_default():
    names = set(CompletionRequest.model_fields) - {"prompt"}
    assert completion(**dict.fromkeys(names)) == completion()


def test_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        ]
    )
    assert [message.for_template() for message in body.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["hi"],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "text": ""}]}],
    ],
)
def test_wrong_messages_are_refused(messages):
    with pytest.raises(ValidationError):
        chat(messages=messages)


@pytest.mark.parametrize("extra", [{"name": "Ann"}, {"tool_calls": [{"id": "1"}]}, {"foo": 1}])
def test_what_a_message_cannot_have(extra):
    with pytest.raises(RequestError) as caught:
        chat(messages=[{**USER, **extra}])
    assert caught.value.param == next(iter(extra))


def test_token_limit_has_two_names():
    assert chat().token_limit is None
    assert chat(max_tokens=3).token_limit == 3
    assert chat(max_completion_tokens=4).token_limit == 4
    assert chat(max_tokens=9, max_completion_tokens=4).token_limit == 4


def test_top_logprobs_needs_logprobs():
    with pytest.raises(RequestError, match="needs logprobs=true"):
        chat(top_logprobs=2)


def test_seeds_of_choices_differ_and_stay_64_bit():
    body = completion(seed=2**63 - 1)
    seeds = [body.sampling_params(i, max_tokens=1, logprobs=None).seed for i in range(3)]
    assert seeds == [2**63 - 1, -(2**63), -(2**63) + 1]
    assert completion().sampling_params(1, max_tokens=1, logprobs=None).seed is None


def test_priority_and_salt_are_passed_on():
    body = chat(priority=-3, cache_salt="mine")
    params = body.sampling_params(0, max_tokens=1, logprobs=None)
    assert (params.priority, params.cache_salt) == (-3, "mine")
    params = chat().sampling_params(0, max_tokens=1, logprobs=None)
    assert (params.priority, params.cache_salt) == (0, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(CompletionRequest.model_fields)) | st.text(), JSON))
def test_any_json_is_read_or_refused(fields):
    try:
        body = CompletionRequest.model_validate(fields)
        body.sampling_params(0, max_tokens=1, logprobs=body.logprobs)
    except (ValidationError, RequestError):
        return
    assert set(fields) <= set(CompletionRequest.model_fields) | IGNORED | set(INERT) | {
        name for name, value in fields.items() if value is None
    }
