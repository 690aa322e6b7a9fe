"""Log-probabilities in OpenAI's two shapes."""

from hypothesis import given
from hypothesis import strategies as st

from llmlab.serve.deltas import TokenLogprob
from llmlab.serve.logprobs import CompletionLogprobs, chat_entries, joined, token_text
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def entry(token_id, token_bytes, logprob=-1.0, top=()):
    return TokenLogprob(token_id, token_bytes, logprob, top)


def test_parts_of_characters_have_texts_of_their_own():
    assert token_text("é".encode()) == "é"
    assert token_text("é".encode()[:1]) == "bytes:\\xc3"
    assert len({token_text(bytes([byte])) for byte in range(256)}) == 256


def test_alternatives_with_the_same_text_keep_both():
    first, second = entry(1, b"a", -1.0), entry(2, b"a", -2.0)
    chosen = entry(3, b"b", -3.0, (first, second))
    lists = CompletionLogprobs(TOKENIZER).generated([chosen])
    assert lists["top_logprobs"] == [{"a": -1.0, "token_id:2": -2.0, "b": -3.0}]


def test_no_probability_is_a_number_json_has():
    never = entry(1, b"a", float("-inf"))
    assert chat_entries([never])[0]["logprob"] == -9999.0
    assert CompletionLogprobs(TOKENIZER).generated([never])["token_logprobs"] == [-9999.0]


@given(st.text(max_size=12), st.integers(0, 12))
def test_offsets_do_not_depend_on_how_the_tokens_come(text, at):
    ids = TOKENIZER.encode(text)
    entries = [entry(i, TOKENIZER.token_bytes(i)) for i in ids]
    once = CompletionLogprobs(TOKENIZER).generated(entries)
    twice = CompletionLogprobs(TOKENIZER)
    assert joined([twice.generated(entries[:at]), twice.generated(entries[at:])]) == once
    for offset, token in zip(once["text_offset"], once["tokens"], strict=True):
        if not token.startswith("bytes:"):
            assert text[offset:].startswith(token)


def test_an_echoed_prompt_ends_before_the_answer_begins():
    """Half a character at the end of the prompt is shown as U+FFFD, and counted so."""
    ids = TOKENIZER.encode("a🙂")[:-1]
    entries = [None, *(entry(i, TOKENIZER.token_bytes(i)) for i in ids[1:])]
    logprobs = CompletionLogprobs(TOKENIZER)
    prompt = logprobs.prompt(ids, entries, num_hidden=0)
    assert prompt["token_logprobs"][0] is None
    answer = logprobs.generated([entry(ids[0], b"a")])
    assert answer["text_offset"] == [len(TOKENIZER.decode(ids))]


def test_what_the_tokenizer_adds_has_no_width():
    ids = [TOKENIZER.special_tokens["<|endoftext|>"], *TOKENIZER.encode("ab")]
    entries = [None, *(entry(i, TOKENIZER.token_bytes(i)) for i in ids[1:])]
    lists = CompletionLogprobs(TOKENIZER).prompt(ids, entries, num_hidden=1)
    assert lists["text_offset"][:2] == [0, 0]
