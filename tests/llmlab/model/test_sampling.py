"""The sampler: filters as in transformers, the right distribution, rows that do not meet."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmlab.errors import ModelError
from llmlab.model.sampling import SamplingRows, sample, token_logprobs, uniform


def rows(num_rows: int, **settings: Any) -> SamplingRows:
    """The same settings for every row, seeds 0, 1, ..."""
    columns: dict[str, Any] = {
        key: [value] * num_rows
        for key, value in {"temperature": 1.0, "num_sampled": 0, **settings}.items()
    }
    return SamplingRows(seed=list(range(num_rows)), **columns)


def draw(logits: torch.Tensor, num_draws: int, **settings: Any) -> torch.Tensor:
    """Counts of each token over many seeds; logits is (V,)."""
    ids = sample(logits.expand(num_draws, -1), rows(num_draws, **settings))
    return torch.bincount(ids, minlength=len(logits))


def test_greedy_takes_the_largest():
    logits = torch.randn(5, 50)
    assert sample(logits, rows(5, temperature=0.0)).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_p": 0.999}, {"top_k": 7}])
def test_frequencies_follow_the_probabilities(settings: dict[str, Any]):
    logits = torch.tensor([2.0, 1.0, 0.0, -0.5, 0.7, 1.5, -1.0])
    counts = draw(logits, 20_000, **settings)
    expected = (logits.double() / settings.get("temperature", 1.0)).softmax(-1) * 20_000
    # Fixed seeds: a p-value below this would be seen once in a thousand samplers that are right.
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


NO_IDS: Any = torch.zeros(1, 1, dtype=torch.int64)
FILTERS: list[tuple[dict[str, Any], list[Any]]] = [
    ({"top_k": 5}, [TopKLogitsWarper(5)]),
    ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
    ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    ({"top_k": 10, "top_p": 0.6}, [TopKLogitsWarper(10), TopPLogitsWarper(0.6)]),
    (
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        [
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ],
    ),
]


@pytest.mark.parametrize("vocab_size", [60, 1500])
@pytest.mark.parametrize(("settings", "processors"), FILTERS)
def test_filters_keep_what_transformers_keeps(
    settings: dict[str, Any], processors: list[Any], vocab_size: int
):
    torch.manual_seed(vocab_size)
    logits = torch.randn(vocab_size) * 2
    scores = LogitsProcessorList(processors)(NO_IDS, logits[None])
    expected = scores.softmax(-1)[0]
    num_draws = 5_000
    counts = draw(logits, num_draws, **settings)
    assert not counts[expected == 0].any()
    common = expected > 20 / num_draws
    observed = torch.cat((counts[common], counts[~common].sum()[None])).double()
    wanted = torch.cat((expected[common], expected[~common].sum()[None])).double() * num_draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    wanted *= observed.sum() / wanted.sum()
    assert chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3


def test_flat_nucleus_needs_more_than_the_first_candidates():
    logits = torch.linspace(0.01, 0, 1500)
    counts = draw(logits, 3000, top_p=0.9)
    # The last tenth is cut; each of the others is drawn about twice, so one in nine never.
    assert not counts[1350:].any()
    assert (counts[1200:1345] > 0).float().mean() > 0.75


def test_equally_likely_tokens_are_kept_alike():
    counts = draw(torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]), 3000, top_k=2)
    assert not counts[[0, 4]].any()
    assert chisquare(counts[1:4].numpy()).pvalue > 1e-3


def test_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(1, 30)
    prompt, output = [3, 4, 4], [5, 6]
    context: Any = torch.tensor([prompt + output])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(context, logits)
    expected_ids = [int(expected[0].argmax())]
    settings = rows(
        1, temperature=0.0, repetition_penalty=1.7, prompt_ids=prompt, output_ids=output
    )
    assert sample(logits, settings).tolist() == expected_ids
    forced = torch.zeros(1, 30)
    forced[0, 5] = 1.6
    forced[0, 7] = 1.0
    assert sample(forced, settings).tolist() == [7]  # 1.6 / 1.7 < 1


def test_presence_and_frequency_count_the_output_only():
    logits = torch.tensor([[1.0, 0.9, 0.0]])
    greedy: dict[str, Any] = {"temperature": 0.0, "prompt_ids": [0, 0, 0]}
    assert sample(logits, rows(1, presence_penalty=0.2, output_ids=[], **greedy)).item() == 0
    assert sample(logits, rows(1, presence_penalty=0.2, output_ids=[0], **greedy)).item() == 1
    assert sample(logits, rows(1, frequency_penalty=0.06, output_ids=[0], **greedy)).item() == 0
    assert sample(logits, rows(1, frequency_penalty=0.06, output_ids=[0, 0], **greedy)).item() == 1


def test_logit_bias_bans_and_forces():
    logits = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0]])
    settings = SamplingRows(
        temperature=[0, 0], seed=[0, 0], num_sampled=[0, 0], logit_bias=[{0: -100}, {2: 100.0}]
    )
    assert sample(logits, settings).tolist() == [1, 2]
    assert logits.tolist()[0] == [1.0, pytest.approx(0.9), 0.0]


ROW = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "seed": st.integers(-(2**63), 2**64 - 1),
        "num_sampled": st.integers(0, 1000),
        "top_k": st.sampled_from([0, 1, 3, 10_000]),
        "top_p": st.sampled_from([0.1, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "presence_penalty": st.sampled_from([0.0, 1.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "prompt_ids": st.lists(st.integers(0, 39), max_size=5),
        "output_ids": st.lists(st.integers(0, 39), max_size=5),
        "logit_bias": st.dictionaries(st.integers(0, 39), st.floats(-5, 5), max_size=2),
    }
)


def together(parts: list[dict[str, Any]]) -> SamplingRows:
    return SamplingRows(**{key: [part[key] for part in parts] for key in parts[0]})


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6))
def test_a_row_does_not_depend_on_its_batch(parts: list[dict[str, Any]]):
    torch.manual_seed(0)
    logits = torch.randn(len(parts), 40) * 3
    batched = sample(logits, together(parts)).tolist()
    alone = [int(sample(logits[i : i + 1], together(parts[i : i + 1]))) for i in range(len(parts))]
    assert batched == alone


def test_uniform_is_even_and_unrelated_between_neighbours():
    numbers = torch.tensor([[uniform(seed, n) for n in range(100)] for seed in range(100)])
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    assert chisquare(counts.numpy()).pvalue > 1e-3
    # 10 000 pairs: the correlation of unrelated ones has a standard deviation of 0.01.
    for first, second in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])):
        pairs = torch.stack((first.flatten(), second.flatten()))
        assert abs(torch.corrcoef(pairs)[0, 1]) < 0.04


def test_a_tiny_temperature_is_greedy_and_finite():
    logits = torch.randn(4, 50) * 100
    assert sample(logits, rows(4, temperature=1e-6)).tolist() == logits.argmax(-1).tolist()


def test_masked_tokens_are_never_sampled():
    logits = torch.full((500, 20), float("-inf"))
    logits[:, 3:5] = 0.0
    assert set(sample(logits, rows(500)).tolist()) == {3, 4}


def test_logprobs_are_the_models_own():
    logits = torch.randn(3, 11)
    found = token_logprobs(logits, torch.tensor([1, 2, 3]), num_top=4)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(found.sampled, expected[range(3), [1, 2, 3]])
    torch.testing.assert_close(found.top_logprobs, expected.sort(-1, descending=True)[0][:, :4])
    assert token_logprobs(logits, torch.tensor([1, 2, 3])).top_ids.shape == (3, 0)


def test_rows_that_do_not_fit():
    with pytest.raises(ModelError, match=r"SamplingRows\.seed has 1 rows, temperature has 2"):
        SamplingRows(temperature=[0, 0], seed=[1], num_sampled=[0, 0])
    with pytest.raises(ModelError, match=r"logits has shape \(3, 5\) for 2 rows"):
        sample(torch.zeros(3, 5), rows(2))
