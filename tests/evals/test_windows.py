"""Which tokens are scored: every token of a text once, never more than the model can be fed."""

from hypothesis import given
from hypothesis import strategies as st

from llmlab.evals.windows import Coding, Row

PREFIX = -1


def coding(max_len: int, bos_ids: list[int] | None = None) -> Coding:
    """A tokenizer of one id a character."""
    return Coding(
        encode=lambda text: [ord(char) for char in text],
        bos_ids=bos_ids or [],
        prefix_id=PREFIX,
        max_len=max_len,
    )


@given(st.text(max_size=80), st.integers(1, 12))
def test_windows_score_every_token_once_after_what_precedes_it(text: str, max_len: int) -> None:
    ids = [ord(char) for char in text]
    rows = coding(max_len).text_rows(text)
    assert [token for row in rows for token in row.target_ids] == ids
    whole = [PREFIX, *ids]
    end = 0
    for row in rows:
        end += len(row.target_ids)
        assert len(row.target_ids) <= len(row.input_ids) <= max_len
        assert row.input_ids == whole[end - len(row.input_ids) : end]
        if end > max_len:
            assert len(row.input_ids) == max_len  # filled up with as much context as fits


def test_windows_are_lm_evals() -> None:
    """By hand, as lm-eval 0.4.13 cuts ten tokens for a model of four."""
    rows = coding(4).text_rows("abcdefghij")
    text = ["".join(chr(i) if i > 0 else "^" for i in row.input_ids) for row in rows]
    assert text == ["^abc", "defg", "fghi"]
    assert ["".join(map(chr, row.target_ids)) for row in rows] == ["abcd", "efgh", "ij"]


@given(st.text(max_size=30), st.text(max_size=10), st.integers(1, 20))
def test_pairs_score_what_the_continuation_adds(
    context: str, continuation: str, max_len: int
) -> None:
    row = coding(max_len).pair_row(context, continuation)
    spaces = context[len(context.rstrip()) :]
    target = [ord(char) for char in spaces + continuation]
    if isinstance(row, str):
        assert not target or len(target) > max_len
        return
    assert row.target_ids == target
    assert len(target) <= len(row.input_ids) <= max_len


def test_a_space_at_the_end_of_the_context_is_scored_with_the_continuation() -> None:
    assert coding(9).pair_row("ab  ", "c") == coding(9).pair_row("ab", "  c")


def test_an_empty_context_is_the_prefix_and_bos_stands_in_front_of_others() -> None:
    bos = coding(9, bos_ids=[PREFIX])
    assert bos.pair_row("", "ab") == Row([PREFIX, ord("a")], [ord("a"), ord("b")])
    assert bos.pair_row("x", "a") == Row([PREFIX, ord("x")], [ord("a")])
    assert coding(9).pair_row("x", "a") == Row([ord("x")], [ord("a")])


def test_what_cannot_be_scored_says_why() -> None:
    assert coding(3).pair_row("a", "") == "continuation '' adds no token to its context"
    assert coding(3).pair_row("a", "bcde") == "continuation of 4 tokens does not fit 3"
