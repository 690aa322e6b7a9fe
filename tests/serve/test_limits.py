"""What a model can never do, against the rules said plainly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import RequestError
from llmlab.serve.limits import Limits
from llmlab.serve.params import SamplingParams

VOCAB_SIZE, MAX_LEN = 50, 20
LIMITS = Limits(VOCAB_SIZE, MAX_LEN)
IDS = st.integers(-1, VOCAB_SIZE)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(0, MAX_LEN + 2),
    stop_token_ids=st.lists(st.integers(0, VOCAB_SIZE), max_size=2).map(tuple),
    logit_bias=st.dictionaries(st.integers(0, VOCAB_SIZE), st.just(1.0), max_size=2),
)


def fault(prompt: list[int], params: list[SamplingParams]) -> set[str]:
    """The fields that are at fault."""
    faults = set()
    room = MAX_LEN - len(prompt)
    if not prompt or not {*prompt} <= {*range(VOCAB_SIZE)}:
        faults.add("prompt")
    for own in params:
        if room < 0 or (room == 0 and own.max_tokens != 0):
            faults.add("prompt")
        if own.max_tokens is not None and own.max_tokens > room:
            faults.add("max_tokens")
        if VOCAB_SIZE in own.logit_bias:
            faults.add("logit_bias")
        if VOCAB_SIZE in own.stop_token_ids:
            faults.add("stop_token_ids")
    return faults


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.lists(IDS, max_size=4) | st.integers(1, MAX_LEN + 2).map(lambda n: [1] * n),
    params=st.lists(PARAMS, min_size=1, max_size=3),
)
def test_a_request_is_refused_for_a_fault_of_its_own_and_else_accepted(prompt, params):
    faults = fault(prompt, params)
    if not faults:
        LIMITS.check(prompt, *params)
        return
    with pytest.raises(RequestError) as caught:
        LIMITS.check(prompt, *params)
    assert caught.value.param in faults
    assert caught.value.status == 400
