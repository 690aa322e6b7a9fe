"""Statistics on traces made by hand, arrivals, prompts, and what a config refuses."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import ConfigError
from llmlab.serve.bench.client import Question
from llmlab.serve.bench.config import BenchServeConfig, Level
from llmlab.serve.bench.conversations import Conversations, plain_token_ids
from llmlab.serve.bench.load import Run, poisson
from llmlab.serve.bench.long_prompts import Watched, divide
from llmlab.serve.bench.measures import Latency, load_row, long_prompt_row
from llmlab.serve.bench.run import with_ratios
from llmlab.serve.bench.traces import Trace
from tests.tiny import tiny_tokenizer

FIRST = Trace(
    sent_s=10.0, end_s=12.5, chunk_s=(11.0, 11.5, 12.5), num_asked=5, num_prompt=7, num_output=4
)
SECOND = Trace(sent_s=10.5, end_s=14.0, chunk_s=(14.0,), num_asked=1, num_prompt=3, num_output=1)
BROKEN = Trace(sent_s=11.0, end_s=20.0, chunk_s=(12.0, 12.2), num_asked=9, error="HTTP 500: no")


def run_of(*traces, began_s=10.0):
    run = Run(began_s=began_s)
    for trace in traces:
        run.add(trace)
    return run


def test_a_trace():
    assert FIRST.ttft_s == 1.0
    assert FIRST.itl_s == [0.5, 1.0]
    assert FIRST.tpot_s == pytest.approx(0.5)  # 1.5 s for the 3 tokens after the first
    assert FIRST.e2e_s == 2.5
    assert SECOND.tpot_s is None
    assert SECOND.itl_s == []
    assert Trace(sent_s=0, end_s=1).ttft_s is None


def test_a_row_of_hand_made_traces():
    row = load_row("a", Level(concurrency=2), [run_of(FIRST, SECOND, BROKEN)], 0)
    assert row.seconds == 10.0  # the failed one took its time too
    assert (row.requests, row.failed, row.errors) == (2, 1, {"HTTP 500: no": 1})
    assert (row.prompt_tokens, row.output_tokens, row.asked_tokens) == (10, 5, 6)
    assert row.output_tok_per_s == pytest.approx(0.5)
    assert row.total_tok_per_s == pytest.approx(1.5)
    assert row.requests_per_s == pytest.approx(0.2)
    assert row.tokens_per_event == pytest.approx(5 / 4)
    assert row.ttft_ms == Latency(2250.0, 2250.0, 3250.0, 3475.0, 2)  # of 1000 and 3500
    assert row.itl_ms is not None
    assert (row.itl_ms.mean, row.itl_ms.count) == (750.0, 2)
    assert row.tpot_ms is not None
    assert row.tpot_ms.p50 == pytest.approx(500.0)


def test_rounds_are_put_together():
    runs = [run_of(FIRST), run_of(SECOND)]
    row = load_row("a", Level(rate=2.0), runs, None)
    assert row.seconds == 2.5 + 4.0
    assert row.output_tok_per_s == pytest.approx(5 / 6.5)
    assert row.round is None
    assert row.ttft_ms is not None
    assert row.ttft_ms.count == 2


def test_nothing_came():
    row = load_row("a", Level(concurrency=1), [run_of(BROKEN)], 0)
    assert (row.requests, row.output_tok_per_s) == (0, 0.0)
    assert row.ttft_ms is None
    assert row.tokens_per_event is None
    empty = load_row("a", Level(concurrency=1), [run_of()], 0)
    assert (empty.seconds, empty.requests_per_s) == (0.0, 0.0)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_percentiles_are_numpys(seconds):
    found = Latency.of([*seconds, None])
    assert found is not None
    ms = [1e3 * value for value in seconds]
    assert (found.p50, found.p90, found.p99) == tuple(np.percentile(ms, [50, 90, 99]))
    assert found.mean == pytest.approx(np.mean(ms))
    assert found.count == len(seconds)


def test_ratios_are_of_the_same_round():
    def rows(label, *counts):
        traces = [Trace(sent_s=0, end_s=1, num_output=count) for count in counts]
        return [
            load_row(label, Level(concurrency=1), [run_of(trace, began_s=0.0)], number)
            for number, trace in enumerate(traces)
        ]

    ours, theirs = rows("ours", 20, 30, 80), rows("theirs", 10, 10, 20)
    other = [load_row("ours", Level(rate=1.0), [run_of(FIRST)], 0)]
    first, last = with_ratios([ours[0], theirs[0]], [*ours, *theirs, *other])
    assert first.ratio is not None
    assert (first.ratio.median, first.ratio.rounds) == (3.0, 3)  # of 2, 3 and 4
    assert first.ratio.p20 == pytest.approx(2.4)
    assert last.ratio is None
    stalled = rows("theirs", 0, 10, 0)
    first, _ = with_ratios([ours[0], stalled[0]], [*ours, *stalled])
    assert first.ratio is not None
    assert (first.ratio.median, first.ratio.rounds) == (3.0, 1)
    first, _ = with_ratios([ours[0], rows("theirs", 0)[0]], [*ours, *rows("theirs", 0, 0, 0)])
    assert first.ratio is None


def test_gaps_are_divided_by_when_they_were():
    moments = [[0.0, 1.0, 2.0, 3.0, 7.0, 8.0, 9.0], [0.5, 1.5, 2.5, 3.5, 6.0, 7.9, 9.5]]
    long = Trace(sent_s=3.2, end_s=8.0, chunk_s=(7.5,))
    watched = Watched()
    divide(moments, long, watched)
    # Alone: from 0.5, when both streams had begun, to 3.2. What touches 3.2 to 7.5 is meanwhile.
    assert watched.idle_s == pytest.approx([1.0, 1.0, 1.0, 1.0])
    assert watched.busy_s == pytest.approx([4.0, 1.0, 1.0, 2.5, 1.9])
    row = long_prompt_row("a", Level(concurrency=2), [Watched([1.0], [3.0], long)], 0)
    assert row.p99_ratio == pytest.approx(3.0)
    failed = Watched(idle_s=[9.0], error="HTTP 500: no")
    row = long_prompt_row("a", Level(concurrency=2), [failed], 0)
    assert (row.long_prompts, row.failed, row.p99_ratio) == (0, 1, None)


def test_poisson_arrivals():
    moments = list(itertools.islice(poisson(4.0, np.random.default_rng(0)), 20_000))
    gaps = np.diff([0.0, *moments])
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)  # its standard error is 0.7 %
    assert gaps.std() == pytest.approx(0.25, rel=0.05)  # as of an exponential distribution
    again = list(itertools.islice(poisson(4.0, np.random.default_rng(0)), 5))
    assert again == moments[:5]


def test_prompts_of_words_and_of_token_ids():
    config = BenchServeConfig(input_len=30, output_len=6)
    (question,) = next(iter(Conversations(config)))
    assert isinstance(question.prompt, str)
    assert len(question.prompt.split()) == 30
    assert question.num_tokens == 6
    tokenizer = tiny_tokenizer()
    ids = plain_token_ids(tokenizer)
    assert len(ids) == tokenizer.vocab_size - len(tokenizer.special_tokens)
    (question,) = next(iter(Conversations(config, token_ids=ids)))
    assert isinstance(question.prompt, list)
    assert len(question.prompt) == 30
    assert set(question.prompt) <= set(ids.tolist())
    chat = BenchServeConfig(chat=True)
    (question,) = next(iter(Conversations(chat)))
    assert isinstance(question.prompt, list)
    assert isinstance(question.prompt[0], dict)
    assert question.prompt[0]["role"] == "user"


def test_the_seed_decides_the_prompts():
    def first(seed=0, **numbers):
        config = BenchServeConfig(mix="shared-prefix", shared_len=20, input_len=10, seed=seed)
        supply = iter(Conversations(config, **numbers))
        return [next(supply)[0].prompt for _ in range(2)]

    def starts(prompts):
        return {" ".join(prompt.split()[:20]) for prompt in prompts}

    one, two = first()
    assert first() == [one, two]
    assert one != two
    assert len(starts([one, two])) == 1
    warm = first(purpose=1)
    assert starts(warm) == starts([one])
    assert not {*warm} & {one, two}
    for other in (first(seed=1), first(load=1), first(number=1)):
        assert starts(other) != starts([one])


@given(st.integers(1, 50), st.floats(0, 1))
def test_lengths_stay_in_their_spread(length, spread):
    config = BenchServeConfig(input_len=length, output_len=length, spread=spread)
    width = round(length * spread)
    for turns in itertools.islice(Conversations(config), 5):
        for question in turns:
            assert isinstance(question, Question)
            assert isinstance(question.prompt, str)
            for number in (len(question.prompt.split()), question.num_tokens):
                assert max(1, length - width) <= number <= length + width


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"num_requests": 0}, "num_requests=0"),
        ({"concurrency": (4, 0)}, r"concurrency=\(4, 0\) must be above 0"),
        ({"rate": (-1.0,)}, "rate="),
        ({"seconds": 0.0}, "seconds=0.0 must be above 0"),
        ({"spread": 1.5}, "spread=1.5 must be from 0 to 1"),
        ({"base_url": ()}, "names no server"),
        ({"label": ("a", "b")}, "2 labels for 1 URLs"),
        ({"base_url": ("x", "x")}, "has a name twice"),
        ({"num_requests": 1, "seconds": 1.0}, "give one of them"),
        ({"mix": "long-prefill", "rate": (1.0,)}, "not --rate or --seconds"),
        ({"mix": "multi-turn", "tokenizer": "x"}, "chats are text"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError, match=message):
        BenchServeConfig(**fields)


def test_loads_and_numbers_of_requests():
    assert [level.concurrency for level in BenchServeConfig().levels] == [1, 8, 32]
    assert [level.concurrency for level in BenchServeConfig(mix="long-prefill").levels] == [8]
    config = BenchServeConfig(rate=(2.0, 0.1), concurrency=(3, 8))
    assert [str(level) for level in config.levels] == [
        "3 at once", "8 at once", "2 per s", "0.1 per s",
    ]  # fmt: skip
    assert [config.num_requests_at(level) for level in config.levels] == [16, 32, 60, 16]
