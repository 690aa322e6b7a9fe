"""Guesses and how many of them pay; that they change no token is tested with the engine."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.serve.speculation import Chance, NgramIndex, StepCost, draft_lens


def test_what_followed_last_time_is_guessed():
    assert NgramIndex().guess([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]
    assert NgramIndex().guess([1, 2, 3, 1, 2, 4, 9, 1, 2], 1) == [4], "the later place"


def test_the_place_with_most_tokens_alike_is_taken():
    text = [7, 8, 1, 2, 3, 0, 9, 9, 1, 2, 4, 0, 7, 8, 1, 2]
    assert NgramIndex().guess(text, 2) == [3, 0]


def test_a_text_that_repeats_itself_goes_on():
    assert NgramIndex().guess([5, 6, 5, 6, 5, 6], 5) == [5, 6, 5, 6, 5]


def test_nothing_is_guessed_behind_a_new_pair():
    assert NgramIndex().guess([1, 2, 3, 4], 3) == []
    assert NgramIndex().guess([1], 3) == []
    assert NgramIndex().guess([1, 1, 1], 0) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 6))
def test_an_index_that_grows_guesses_like_a_fresh_one(tokens, count):
    index = NgramIndex()
    for end in range(len(tokens) + 1):
        grown = index.guess(tokens[:end], count)
        assert grown == NgramIndex().guess(tokens[:end], count)
        tail = tokens[max(end - 2, 0) : end]
        followers = {tokens[at + 2] for at in range(end - 2) if tokens[at : at + 2] == tail}
        assert len(grown) == (count if followers else 0)
        assert set(grown[:1]) <= followers


def costs(seconds):
    cost = StepCost()
    for size in (1, 2, 4, 8, 16, 32, 64, 128):
        for _ in range(20):
            cost.observe(size, seconds(size))
    return cost


def test_costs_are_learned_and_interpolated():
    cost = costs(lambda tokens: 0.01 + 0.001 * tokens)
    for tokens in (1, 3, 8, 24, 100):
        assert abs(cost.seconds(tokens) - (0.01 + 0.001 * tokens)) < 1e-9


def test_sizes_never_seen_are_tried():
    cost = StepCost()
    cost.observe(4, 0.02)
    assert cost.seconds(64) == 0.02
    assert cost.seconds(1) == 0.02


def test_where_steps_cost_the_same_likely_drafts_are_long():
    memory_bound = costs(lambda tokens: 0.01)
    assert draft_lens([0.9], [8], 1, memory_bound) == [8]


def test_where_every_token_costs_as_much_there_is_no_draft():
    compute_bound = costs(lambda tokens: 0.001 * tokens)
    assert draft_lens([0.9] * 16, [8] * 16, 16, compute_bound) == [0] * 16


def test_a_guesser_that_takes_its_time_is_asked_for_less():
    memory_bound = costs(lambda tokens: 0.01)
    short = draft_lens([0.8], [8], 1, memory_bound, guess_s=0.002)[0]
    assert 0 < short < draft_lens([0.8], [8], 1, memory_bound)[0]
    assert draft_lens([0.8], [8], 1, memory_bound, guess_s=0.01) == [0]


def test_the_likelier_sequence_gets_the_longer_draft():
    cost = costs(lambda tokens: 0.01 + 0.0015 * tokens)
    likely, unlikely = draft_lens([0.95, 0.2], [8, 8], 2, cost)
    assert likely > unlikely


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6)), min_size=1, max_size=6),
    st.floats(0, 0.01),
)
def test_no_other_lengths_give_more_tokens_per_second(rows, token_s):
    chances, most = [row[0] for row in rows], [row[1] for row in rows]
    cost = costs(lambda tokens: 0.01 + token_s * tokens)

    def rate(lens):
        expected = len(lens) + sum(
            chance**length
            for chance, chosen in zip(chances, lens, strict=True)
            for length in range(1, chosen + 1)
        )
        return expected / cost.seconds(len(lens) + sum(lens))

    found = draft_lens(chances, most, len(rows), cost)
    assert all(0 <= length <= longest for length, longest in zip(found, most, strict=True))
    for row in range(len(rows)):
        for change in (-1, 1):
            other = list(found)
            other[row] += change
            if 0 <= other[row] <= most[row]:
                assert rate(other) <= rate(found) * (1 + 1e-9)


def test_chances_follow_what_was_right_and_come_back():
    chance = Chance()
    for _ in range(30):
        chance.observe(4, 4)
    assert chance.value > 0.95
    for _ in range(30):
        chance.observe(4, 0)
    assert chance.value < 0.05
    for _ in range(100):
        chance.observe(0, 0)
    assert chance.value > 0.5
