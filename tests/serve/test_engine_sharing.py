"""What requests share (a prefix, a whole prompt, memory, the machine) changes none of their tokens.

The tokens a request has alone, without any sharing, are those of test_engine.py, which compares
them with transformers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmlab.errors import ConfigError, RequestError
from llmlab.serve import Engine, EngineConfig, SamplingParams
from llmlab.serve.deltas import Delta, Output
from tests.tiny import tiny_model_folder

P = 4
LOGPROB_TOLERANCE = 1e-4  # float32, 3 layers: another order of the same sums
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(folder):
    """An engine in which nothing is shared."""
    config = EngineConfig(
        model=folder, dtype="float32", page_len=P, max_running=1, prefix_cache=False, itl_ratio=None
    )
    with Engine(config) as engine:
        yield engine
        assert engine.stats().prefix_queries == engine.stats().cached_pages == 0


def start(folder: Path, **changes) -> Engine:
    return Engine(replace(EngineConfig(model=folder, dtype="float32", page_len=P), **changes))


def ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()


def sampled(seed: int, max_tokens: int = 12) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=1.3, seed=seed, ignore_eos=True)


def finish(engine: Engine) -> dict[int, list[Delta]]:
    """Step until nothing is left; return the deltas of each request."""
    deltas: dict[int, list[Delta]] = {}
    while engine.has_work:
        for number, delta in engine.step():
            deltas.setdefault(number, []).append(delta)
    stats = engine.stats()
    assert stats.free_pages == stats.num_pages
    assert stats.running == stats.waiting == 0
    return deltas


def tokens(deltas: Sequence[Delta]) -> tuple[int, ...]:
    return tuple(i for delta in deltas for i in delta.token_ids)


def assert_same(output: Output, expected: Output) -> None:
    assert output.token_ids == expected.token_ids
    for entry, other in zip(output.logprobs, expected.logprobs, strict=True):
        assert abs(entry.logprob - other.logprob) < LOGPROB_TOLERANCE


# The prefix cache


@pytest.mark.parametrize("length", [1, 4, 5, 16, 17, 40])
def test_a_prompt_seen_before_gives_the_same_and_is_counted(folder, alone, length):
    prompt, other = ids(length), [*ids(length), *ids(9, seed=1)]
    with start(folder) as engine:
        (first,) = engine.generate([prompt], GREEDY)
        (again,) = engine.generate([prompt], GREEDY)
        (longer,) = engine.generate([other], GREEDY)
        stats = engine.stats()
    found = (length - 1) // P * P
    assert [output.num_cached_tokens for output in (first, again)] == [0, found]
    assert length // P * P <= longer.num_cached_tokens <= length
    assert stats.prefix_queries == 3 * length + 9
    assert stats.prefix_hits == found + longer.num_cached_tokens
    assert stats.cached_pages > 0
    expected, expected_longer = alone.generate([prompt, other], GREEDY)
    for output in (first, again):
        assert_same(output, expected)
    assert_same(longer, expected_longer)


def test_the_next_turn_of_a_conversation_finds_the_answer_too(folder, alone):
    prompt = ids(10)
    with start(folder) as engine:
        (answer,) = engine.generate([prompt], GREEDY)
        turn = [*prompt, *answer.token_ids, *ids(5, seed=1)]
        (output,) = engine.generate([turn], GREEDY)
    assert output.num_cached_tokens == (10 + 12 - 1) // P * P
    assert_same(output, next(alone.generate([turn], GREEDY)))


def test_requests_that_share_a_beginning_run_side_by_side(folder, alone):
    prompts = [[*ids(21), *ids(3, seed=seed)] for seed in range(9)]
    with start(folder, max_running=4, max_batch_tokens=30) as engine:
        outputs = list(engine.generate(prompts, GREEDY))
        stats = engine.stats()
    assert stats.prefix_hits >= 20 * 5
    for output, expected in zip(outputs, alone.generate(prompts, GREEDY), strict=True):
        assert_same(output, expected)


def test_preempted_requests_find_their_own_pages(folder, alone):
    prompts = [ids(length, seed=length) for length in (9, 14, 20, 26)]
    with start(folder, num_pages=16, max_batch_tokens=13, max_running=4) as engine:
        outputs = list(engine.generate(prompts, GREEDY))
        stats = engine.stats()
        assert stats.preemptions > 0
        # What was looked for at the first admission only: nobody's prompt was there before.
        assert (stats.prefix_queries, stats.prefix_hits) == (sum(map(len, prompts)), 0)
    for output, expected in zip(outputs, alone.generate(prompts, GREEDY), strict=True):
        assert_same(output, expected)
        assert output.num_cached_tokens == 0


def test_a_scored_prompt_is_computed_whole(folder):
    params = replace(GREEDY, prompt_logprobs=0)
    with start(folder) as engine:
        (plain,) = engine.generate([ids(20)], GREEDY)
        first, again = [next(engine.generate([ids(20)], params)) for _ in range(2)]
    for output in (first, again):
        assert output.num_cached_tokens == 0
        assert output.token_ids == plain.token_ids
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == 20
    assert first.prompt_logprobs == again.prompt_logprobs


def test_a_salt_isolates(folder, alone):
    salted = [replace(GREEDY, cache_salt=salt) for salt in ("mine", "yours", "mine", None)]
    with start(folder) as engine:
        outputs = [next(engine.generate([ids(20)], params)) for params in salted]
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 16, 0]
    (expected,) = alone.generate([ids(20)], GREEDY)
    for output in outputs:
        assert_same(output, expected)


# Groups


@pytest.mark.parametrize("length", [1, 4, 5, 30])
@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("max_running", [1, 3])
def test_a_group_gives_what_its_members_give_alone(
    folder, alone, length, prefix_cache, max_running
):
    prompt, params = ids(length), [sampled(seed) for seed in range(5)]
    with start(
        folder, max_running=max_running, max_batch_tokens=9, prefix_cache=prefix_cache
    ) as engine:
        numbers = engine.submit_group(prompt, params)
        assert engine.stats().waiting == 5
        deltas = finish(engine)
        stats = engine.stats()
    assert stats.prompt_tokens == length
    assert stats.requests == 5
    assert stats.prefix_queries == (length if prefix_cache else 0)
    assert stats.prefix_hits == 0
    expected = [output.token_ids for output in alone.generate([prompt] * 5, params)]
    assert [tokens(deltas[number]) for number in numbers] == expected
    assert len(set(expected)) == 5
    # Of the four who follow the reader, the last to begin may own the page it writes into.
    assert stats.copies >= 3


@pytest.mark.parametrize("moment", [0, 2, 3, 5])
@pytest.mark.parametrize("gone", [(0,), (1, 0), (3, 2, 1), (0, 1, 2, 3)])
def test_members_may_leave_a_group_in_any_order(folder, alone, moment, gone):
    prompt, params = ids(15), [sampled(seed, max_tokens=5) for seed in range(4)]
    with start(folder, max_running=2, max_batch_tokens=6, prefix_cache=moment % 2 == 0) as engine:
        numbers = engine.submit_group(prompt, params)
        early: dict[int, tuple[int, ...]] = dict.fromkeys(numbers, ())
        for _ in range(moment):
            for number, delta in engine.step():
                early[number] += delta.token_ids
        for member in gone:
            engine.abort(numbers[member])
        deltas = finish(engine)
    expected = [output.token_ids for output in alone.generate([prompt] * 4, params)]
    for member, number in enumerate(numbers):
        found = early[number] + tokens(deltas.get(number, []))
        if member not in gone:
            assert found == expected[member]
        else:
            assert found == expected[member][: len(found)]


def test_a_group_in_a_pool_that_is_too_small(folder, alone):
    prompt, params = ids(14), [sampled(seed, max_tokens=20) for seed in range(6)]
    with start(folder, num_pages=17, max_running=6, max_batch_tokens=11) as engine:
        numbers = engine.submit_group(prompt, params)
        deltas = finish(engine)
        assert engine.stats().preemptions > 0
    expected = [output.token_ids for output in alone.generate([prompt] * 6, params)]
    assert [tokens(deltas[number]) for number in numbers] == expected


def test_a_group_that_begins_as_another_request_did(folder):
    with start(folder) as engine:
        next(engine.generate([ids(20)], GREEDY))
        numbers = engine.submit_group(ids(20), [GREEDY] * 3)
        deltas = finish(engine)
    assert [deltas[number][0].num_cached_tokens for number in numbers] == [16, 0, 0]
    assert all(delta.num_cached_tokens == 0 for number in numbers for delta in deltas[number][1:])


def test_a_group_whose_prompt_is_scored_computes_it_for_each(folder):
    params = [replace(sampled(seed), prompt_logprobs=1) for seed in range(3)]
    with start(folder) as engine:
        numbers = engine.submit_group(ids(10), params)
        deltas = finish(engine)
        assert engine.stats().copies == 0
    for number in numbers:
        scores = deltas[number][0].prompt_logprobs
        assert scores is not None
        assert len(scores) == 10


def test_a_group_is_refused_as_a_whole(folder):
    with start(folder) as engine:
        with pytest.raises(RequestError, match="use at most 118"):
            engine.submit_group(ids(10), [GREEDY, replace(GREEDY, max_tokens=119)])
        assert not engine.has_work


# Who is next


def test_priorities_and_clients_decide_who_is_next(folder):
    def order(*asked: tuple[int, str]) -> list[int]:
        with start(folder, max_running=1) as engine:
            for at, (priority, client) in enumerate(asked):
                params = replace(GREEDY, priority=priority)
                engine.submit(ids(5, seed=at), params, client=client)
            return list(finish(engine))

    assert order((0, ""), (2, ""), (-1, ""), (2, "")) == [2, 0, 1, 3]
    assert order((0, "a"), (0, "a"), (0, "a"), (0, "b"), (0, "b")) == [0, 3, 1, 4, 2]


def test_the_pace_of_streams_changes_no_token(folder, alone):
    prompts = [ids(length, seed=length) for length in (3, 60, 70, 80)]
    with start(folder, itl_ratio=1.01) as engine:
        numbers = [engine.submit(prompt, GREEDY) for prompt in prompts]
        deltas = finish(engine)
    for number, expected in zip(numbers, alone.generate(prompts, GREEDY), strict=True):
        assert tokens(deltas[number]) == expected.token_ids


@pytest.mark.parametrize("ratio", [1.0, 0.5, float("inf"), float("nan")])
def test_a_pace_that_cannot_be_kept_is_refused(folder, ratio):
    with pytest.raises(ConfigError, match=f"itl_ratio={ratio} must be above 1"):
        EngineConfig(model=folder, itl_ratio=ratio)
