import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmlab.serve.detokenize import TextStream
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def stream(ids, stop=()) -> tuple[list[str], bool]:
    """Pieces of the whole text, and whether a stop string ended it."""
    text = TextStream(TOKENIZER, stop)
    pieces = []
    for token_id in ids:
        piece, stopped = text.push(token_id)
        pieces.append(piece)
        if stopped:
            return pieces, True
    rest, stopped = text.finish()
    return [*pieces, rest], stopped


def cut(text: str, stop: tuple[str, ...]) -> str:
    """Return the text before the stop string that is complete first, the longest of those."""
    for end in range(len(text) + 1):
        found = [each for each in stop if text[:end].endswith(each)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_pieces_join_to_what_decode_gives(ids):
    pieces, stopped = stream(ids)
    assert not stopped
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)


@example(" aa", ("a", " aa"))
@given(
    st.text("abc é🙂", max_size=30),
    st.lists(st.text("abc é🙂", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
)
def test_no_part_of_a_stop_string_is_ever_shown(text, stop):
    # One token a byte: borders fall inside characters and inside stop strings.
    ids = [
        TOKENIZER.encode(chr(byte))[0] if byte < 128 else byte_id(byte) for byte in text.encode()
    ]
    pieces, stopped = stream(ids, stop)
    assert "".join(pieces) == cut(text, stop)
    assert stopped == any(each in text for each in stop)


def byte_id(byte: int) -> int:
    return next(
        token_id
        for token_id in range(TOKENIZER.vocab_size)
        if TOKENIZER.token_bytes(token_id) == bytes([byte])
    )


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("abcd", ("x",), ["a", "b", "c", "d", ""]),
        ("abcd", ("cx",), ["a", "b", "", "cd", ""]),
        ("aab", ("ab",), ["", "a", ""]),
        ("aax", ("aab",), ["", "", "aax", ""]),
        ("ab", ("abc",), ["", "", "ab"]),
    ],
)
def test_text_is_held_only_while_it_may_become_a_stop_string(text, stop, pieces):
    assert stream([byte_id(ord(each)) for each in text], stop)[0] == pieces


def test_one_token_may_hold_several_stop_strings():
    token = TOKENIZER.encode("first")
    assert len(token) == 1, "the case this test is about"
    assert stream(token, ("rs", "r")) == (["fi"], True)
    assert stream(token, ("r", "ir")) == (["f"], True)
    assert stream(token, ("first", "r")) == (["fi"], True)


def test_a_stop_string_counts_only_where_it_may():
    text = TextStream(TOKENIZER, ("a",))
    assert text.push(byte_id(97), may_stop=False) == ("a", False)
    assert text.push(byte_id(97)) == ("", True)
