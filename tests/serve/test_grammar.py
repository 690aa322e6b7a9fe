"""Grammars at work: whatever a sequence is led to, its text has the structure asked for."""

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llmlab.serve.grammar import GrammarCompiler, GrammarSpec, GrammarState, apply_bitmask
from llmlab.serve.grammar.vocabulary import Vocabulary
from llmlab.tokenizers import Tokenizer
from tests.tiny import TEXTS, tiny_tokenizer

MOST_TOKENS = 3000
KINDS = {"bpe": False, "unigram": False, "char": False, "wordpiece": True, "sentencepiece": True}
"""Kinds of tokenizers, and whether a token may spell something else at the start of a text."""


@cache
def tokenizer(kind: Any = "bpe") -> Tokenizer:
    if kind == "bpe":
        return tiny_tokenizer()
    if kind != "sentencepiece":
        return Tokenizer.train(TEXTS * 2, vocab_size=384, algorithm=kind)
    train: Any = sentencepiece.SentencePieceTrainer.train
    options = {"model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "minloglevel": 2}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        with file.open("wb") as out:
            train(sentence_iterator=iter(TEXTS), model_writer=out, **options)
        return Tokenizer.load(file)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    with GrammarCompiler(tokenizer()) as shared:
        yield shared


def ids_in(row: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


def drive(state: GrammarState, choose: Callable[[list[int]], int]) -> list[int]:
    """Go on until the grammar ends; the ids of the text."""
    ids = []
    for _ in range(MOST_TOKENS):
        token_id = choose(ids_in(state.allowed()))
        assert state.accept(token_id)
        ids.append(token_id)
        if state.is_finished:
            return ids if token_id not in tokenizer().stop_token_ids else ids[:-1]
    raise AssertionError(f"no end after {MOST_TOKENS} tokens")


def at_random(seed: int) -> Callable[[list[int]], int]:
    return random.Random(seed).choice


def json_values() -> st.SearchStrategy:
    scalars = st.none() | st.booleans() | st.integers(-50, 50) | st.text('aé"\\\n ', max_size=4)
    return scalars | st.lists(scalars, max_size=2)


def leaves() -> st.SearchStrategy[dict]:
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 5))
    return st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}]),
        st.tuples(st.integers(-99, 99), st.integers(0, 99)).map(
            lambda low: {"type": "integer", "minimum": low[0], "maximum": sum(low)}
        ),
        lengths.map(
            lambda low: {"type": "string", "minLength": low[0], "maxLength": low[0] + low[1]}
        ),
        st.sampled_from(["^[a-c]{1,4}$", "^(up|down)$", r"^\d{2}:\d{2}$"]).map(
            lambda pattern: {"type": "string", "pattern": pattern}
        ),
        st.lists(json_values(), min_size=1, max_size=4).map(lambda values: {"enum": values}),
        json_values().map(lambda value: {"const": value}),
        st.just({"type": "string", "format": "date"}),
    )


def arrays(items: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    return st.tuples(items, st.integers(0, 2), st.integers(0, 2)).map(
        lambda of: {"type": "array", "items": of[0], "minItems": of[1], "maxItems": of[1] + of[2]}
    )


@st.composite
def objects(draw, values: st.SearchStrategy[dict]) -> dict:
    properties = draw(st.dictionaries(st.sampled_from(["a", "b c", "é", 'q"']), values, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        arrays(inner),
        objects(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=80)
@given(schema=SCHEMAS, seed=st.integers(0, 999), max_whitespace=st.sampled_from([0, 0, 2]))
def test_random_tokens_under_a_random_schema_are_valid_json(schema, seed, max_whitespace, compiler):
    spec = GrammarSpec(json_schema=schema, max_whitespace=max_whitespace)
    text = tokenizer().decode(drive(compiler.compile(spec).state(), at_random(seed)))
    Draft202012Validator(schema).validate(json.loads(text))


REGEXES = st.recursive(
    st.sampled_from(["a", "[b-e]", r"\d", "é", "x?", "[^a-z]", "🙂", r"\.", "ab{2,3}"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: f"({'|'.join(some)})"),
        inner.map(lambda one: f"({one}){{0,3}}"),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(regex=REGEXES, seed=st.integers(0, 999))
def test_random_tokens_under_a_random_regex_match_it(regex, seed, compiler):
    state = compiler.compile(GrammarSpec(regex=regex)).state()
    assert re.fullmatch(regex, tokenizer().decode(drive(state, at_random(seed))), re.DOTALL)


@settings(deadline=None, max_examples=40)
@given(
    choice=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5).map(tuple),
    seed=st.integers(0, 999),
)
def test_a_choice_is_one_of_the_texts_and_each_can_be_had(choice, seed, compiler):
    compiled = compiler.compile(GrammarSpec(choice=choice))
    assert tokenizer().decode(drive(compiled.state(), at_random(seed))) in choice
    for text in choice:
        state = compiled.state()
        assert all(state.accept(i) for i in tokenizer().encode(text))
        assert state.accept(min(tokenizer().stop_token_ids))


SUMS = {
    "Lark": 'start: sum\nsum: term (("+" | "-") term)*\nterm: N | "(" sum ")"\nN: /[1-9]{1,3}/\n',
    "GBNF": 'root ::= sum\nsum ::= term (("+" | "-") term)*\nterm ::= [1-9]{1,3} | "(" sum ")"\n',
}


@pytest.mark.parametrize("dialect", SUMS)
def test_a_grammar_makes_sums_that_python_can_work_out(dialect, compiler):
    compiled = compiler.compile(GrammarSpec(grammar=SUMS[dialect]))
    for seed in range(10):
        text = tokenizer().decode(drive(compiled.state(), shortest_soon(seed)))
        assert re.fullmatch(r"[-+()1-9]+", text)
        assert isinstance(eval(text), int)


def shortest_soon(seed: int) -> Callable[[list[int]], int]:
    """Tokens at random, but after 30 of them what ends recursion: a stop, `)`, a digit."""
    rng, num_tokens = random.Random(seed), 0
    ending = [*tokenizer().stop_token_ids, *tokenizer().encode(")"), *tokenizer().encode("1")]

    def choose(ids: list[int]) -> int:
        nonlocal num_tokens
        num_tokens += 1
        return next((i for i in ending if num_tokens > 30 and i in ids), rng.choice(ids))

    return choose


def test_any_object_is_an_object(compiler):
    state = compiler.compile(GrammarSpec(json_object=True)).state()
    assert all(state.accept(i) for i in tokenizer().encode('{"a":[1,{"b":null}]}'))
    assert state.is_finished
    fresh = compiler.compile(GrammarSpec(json_object=True)).state()
    assert not fresh.accept(tokenizer().encode("[")[0])


def test_stop_tokens_are_allowed_exactly_where_the_text_may_end(compiler):
    regex, text = "(ab)*c?", "ababc"
    state = compiler.compile(GrammarSpec(regex=regex)).state()
    stops = tokenizer().stop_token_ids
    for end in range(len(text) + 1):
        may_end = re.fullmatch(regex, text[:end]) is not None
        assert stops.issubset(ids_in(state.allowed())) == may_end
        assert stops.isdisjoint(ids_in(state.allowed())) != may_end
        assert state.fork().accept(min(stops)) == may_end
        if end < len(text):
            assert not state.is_finished
            assert state.accept(tokenizer().encode(text[end])[0])
    assert state.is_finished, "nothing can follow c"
    assert ids_in(state.allowed()) == sorted(stops)
    assert state.accept(max(stops))
    assert ids_in(state.allowed()) == []
    assert not state.accept(max(stops))


@settings(deadline=None, max_examples=40)
@given(schema=SCHEMAS, seed=st.integers(0, 999), data=st.data())
def test_taking_tokens_back_equals_never_having_accepted_them(schema, seed, data, compiler):
    compiled = compiler.compile(GrammarSpec(json_schema=schema))
    state, rng, masks, ids = compiled.state(), random.Random(seed), [], []
    while not state.is_finished and len(ids) < 60:
        masks.append(ids_in(state.allowed()))
        ids.append(rng.choice(masks[-1]))
        assert state.accept(ids[-1])
    back = data.draw(st.integers(0, len(ids)))
    state.rollback(back)
    kept = len(ids) - back
    assert state.num_accepted == kept
    assert ids_in(state.allowed()) == [*masks, ids_in(state.allowed())][kept]
    fresh = compiled.state()
    assert all(fresh.accept(i) for i in ids[:kept])
    assert fresh.is_finished == state.is_finished
    for token_id, mask in zip(ids[kept:], masks[kept:], strict=True):
        assert ids_in(state.allowed()) == ids_in(fresh.allowed()) == mask
        assert state.accept(token_id) and fresh.accept(token_id)  # noqa: PT018


def test_a_token_that_is_refused_changes_nothing(compiler):
    state = compiler.compile(GrammarSpec(choice=("the cat", "the dog"))).state()
    before = ids_in(state.allowed())
    for token_id in (tokenizer().encode("x")[0], 0, tokenizer().vocab_size, 10**6, -1):
        assert not state.accept(token_id)
    assert ids_in(state.allowed()) == before
    assert state.num_accepted == 0
    with pytest.raises(ValueError, match="cannot take back 1 of 0 tokens"):
        state.rollback(1)


def test_forks_go_their_own_ways(compiler):
    state = compiler.compile(GrammarSpec(regex="a(b+c|d+e)")).state()
    assert state.accept(tokenizer().encode("a")[0])
    mine = ids_in(state.allowed())
    left, right = state.fork(), state.fork()
    assert left.accept(tokenizer().encode("b")[0])
    assert right.accept(tokenizer().encode("d")[0])
    assert not left.accept(tokenizer().encode("e")[0])
    assert left.accept(tokenizer().encode("c")[0])
    assert left.is_finished
    assert not right.is_finished
    right.rollback(1)
    assert right.accept(tokenizer().encode("b")[0])
    assert ids_in(state.allowed()) == mine


def test_forced_text_comes_in_the_tokens_the_tokenizer_takes(compiler):
    text = "The cat sat on the mat"
    state = compiler.compile(GrammarSpec(regex=f"{text}[.!]")).state()
    forced, ids = state.forced(), tokenizer().encode(text)
    assert forced
    assert forced == ids[: len(forced)]
    for token_id in forced:
        assert ids_in(state.allowed()) == [token_id]
        assert state.accept(token_id)
    assert state.forced() == []


def test_white_space_stays_bounded_against_a_model_that_loves_it(compiler):
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"enum": [1, None]}, "minItems": 1, "maxItems": 3},
            "b": {"type": "string", "maxLength": 4},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    blank = {i for i in range(tokenizer().vocab_size) if tokenizer().decode([i]).isspace()}

    def longing(ids: list[int]) -> int:
        return min(ids, key=lambda i: (i not in blank, i))

    texts = {}
    for most in (0, 3):
        spec = GrammarSpec(json_schema=schema, max_whitespace=most)
        texts[most] = tokenizer().decode(drive(compiler.compile(spec).state(), longing))
        outside = re.sub(r'"[^"]*"', '""', texts[most])
        assert max(map(len, re.findall(r"\s*", outside))) == most
        Draft202012Validator(schema).validate(json.loads(texts[most]))
    assert texts[0] == json.dumps(json.loads(texts[0]), separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_spells_what_the_tokenizer_decodes(kind):
    own = tokenizer(kind)
    vocabulary = Vocabulary(own)
    assert vocabulary.size == own.vocab_size
    alias = np.arange(own.vocab_size) if vocabulary.alias is None else vocabulary.alias
    assert (vocabulary.alias is not None) == KINDS[kind]
    plain = [i for i in range(own.vocab_size) if i not in vocabulary.special_ids]
    rng = random.Random(0)
    for _ in range(300):
        ids = rng.choices(plain, k=rng.randint(1, 6))
        first, *rest = (vocabulary.tokens[i] for i in ids)
        spelled = b"".join([vocabulary.tokens[alias[ids[0]]], *rest])
        assert spelled.decode("utf-8", "replace") == own.decode(ids)
        assert first == own.token_bytes(ids[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_can_be_led(kind):
    own, regex = tokenizer(kind), "[a-h]{1,9}( [a-t]{2,9}){0,3}"
    with GrammarCompiler(own) as compiler:
        compiled = compiler.compile(GrammarSpec(regex=regex))
        for seed in range(30):
            state, rng, ids = compiled.state(), random.Random(seed), []
            while not state.is_finished:
                token_id = rng.choice(ids_in(state.allowed()))
                assert state.accept(token_id)
                ids.append(token_id)
            text = own.decode([i for i in ids if i not in own.stop_token_ids])
            assert re.fullmatch(regex, text)
            state.rollback(len(ids))
            assert ids_in(state.allowed()) == ids_in(compiled.state().allowed())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("V", "words"), [(64, 2), (70, 3), (100, 2), (40, 2)])
@pytest.mark.parametrize("rows", [None, (2, 0)])
def test_the_bitmask_forbids_exactly_the_tokens_it_leaves_out(dtype, V, words, rows):
    torch.manual_seed(0)
    num_rows = 3 if rows is None else len(rows)
    logits = torch.randn(3, V).to(dtype)
    bitmask = torch.randint(-(2**31), 2**31, (num_rows, words), dtype=torch.int32)
    expected = logits.clone()
    for at, row in enumerate(range(3) if rows is None else rows):
        for token_id in range(V):
            word, bit = divmod(token_id, 32)
            if word >= words or not int(bitmask[at, word]) >> bit & 1:
                expected[row, token_id] = -torch.inf
    apply_bitmask(logits, bitmask, rows)
    assert torch.equal(logits, expected)


def test_a_mask_goes_straight_into_a_row_of_a_batch(compiler):
    compiled = compiler.compile(GrammarSpec(choice=("cat", "dog")))
    bitmask = torch.zeros(2, compiled.num_words, dtype=torch.int32)
    state = compiled.state()
    state.mask_into(bitmask.numpy()[1])
    assert not bitmask[0].any()
    logits = torch.zeros(1, tokenizer().vocab_size + 40)
    apply_bitmask(logits, bitmask[1:], [0])
    assert logits[0].isfinite().nonzero().flatten().tolist() == ids_in(state.allowed())
    with pytest.raises(ValueError, match="it must be int32"):
        state.mask_into(np.zeros(compiled.num_words, np.int64))
