"""Compiling grammars: what is refused, by whom, how soon, and what it leaves behind."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from llmlab.errors import ConfigError, RequestError, ServerError
from llmlab.serve.grammar import GrammarCompiler, GrammarSpec
from llmlab.serve.grammar.checker import Checker
from llmlab.serve.grammar.limits import MAX_BYTES
from llmlab.serve.grammar.vocabulary import Vocabulary
from llmlab.tokenizers import Tokenizer
from tests.tiny import TEXTS, tiny_tokenizer


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    with GrammarCompiler(tiny_tokenizer()) as shared:
        shared.compile(GrammarSpec(json_object=True))
        yield shared


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def references(length: int) -> dict[str, Any]:
    names = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$defs": names | {f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def wide(num_fields: int) -> dict[str, Any]:
    """A schema that takes long to compile: all fields optional."""
    fields = {f"f{i}": {"type": "integer"} for i in range(num_fields)}
    return {"type": "object", "properties": fields, "additionalProperties": False}


def rules(length: int) -> str:
    chain = "".join(f'r{i}: "a" r{i + 1}\n' for i in range(length))
    return f'start: r0\n{chain}r{length}: "a"\n'


DOUBLING = "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60: "a"'

MALFORMED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "None", "nothing asked for; name exactly one of json_schema"),
    ({"regex": "a", "json_object": True}, "json_object", "json_object and regex asked for"),
    ({"json_schema": "{"}, "json_schema", "not JSON that can be read"),
    ({"json_schema": "[]"}, "json_schema", "json_schema is list; send an object"),
    ({"json_schema": {"const": {1, 2}}}, "json_schema", "cannot be written as JSON"),
    ({"json_schema": {"const": float("nan")}}, "json_schema", "cannot be written as JSON"),
    ({"json_schema": {"x-guidance": {}}}, "json_schema", "x-guidance, which is no keyword"),
    ({"regex": ""}, "regex", "not a non-empty string"),
    ({"regex": "\ud800"}, "regex", "half of a surrogate pair at 0"),
    ({"choice": []}, "None", "nothing asked for"),
    ({"choice": "abc"}, "choice", "choice is str; send a list of strings"),
    ({"choice": ("a", "")}, "choice", "choice has ''; use non-empty strings"),
    ({"choice": ("a", 1)}, "choice", "choice has 1; use non-empty strings"),
    ({"grammar": " "}, "grammar", "not a non-empty string"),
    ({"grammar": '{"grammars":[]}'}, "grammar", "starts with a brace"),
    ({"grammar": "start: %json {}"}, "grammar", "grammar uses %json.*ask for json_schema"),
    ({"grammar": 'start: a\na[stop="x"]: /b+/'}, "grammar", "grammar sets stop for a rule"),
    ({"json_object": True, "max_whitespace": 17}, "max_whitespace", "17 is not usable.*0 to 16"),
    ({"json_object": True, "max_whitespace": True}, "max_whitespace", "True is not usable"),
]

TOO_LARGE: list[tuple[dict[str, Any], str]] = [
    ({"regex": "(" * 60_000 + "a" + ")" * 60_000}, "groups nested more than 100 deep"),
    ({"regex": "a{1,1000000000}"}, "repeats 1000000000 times; use at most 100000"),
    ({"regex": "a" * (MAX_BYTES + 1)}, f"has {MAX_BYTES + 1} characters; use at most {MAX_BYTES}"),
    ({"json_schema": nested(60_000)}, "characters; use at most"),
    ({"json_schema": nested(5_000)}, "RecursionError"),
    ({"json_schema": nested(110)}, "nested more than 100 levels deep"),
    ({"json_schema": wide(150_000)}, "more than 20000 values"),
    ({"json_schema": json.dumps(wide(300_000))}, "characters; use at most"),
    ({"json_schema": {"enum": list(range(5_000))}}, "enum of 5000 values; use at most 4096"),
    ({"json_schema": {"const": "x" * 5_000_000}}, "use at most"),
    ({"json_schema": {"type": "array", "minItems": 10**9}}, "minItems=1000000000; use at most"),
    ({"json_schema": {"type": "string", "maxLength": 10**9}}, "maxLength=1000000000; use at most"),
    ({"json_schema": {"pattern": "a{9999999}"}}, "repeats 9999999 times"),
    ({"json_schema": {"patternProperties": {"(" * 200: {}}}}, "nested more than 100 deep"),
    ({"choice": tuple(map(str, range(5_000)))}, "choice has 5000 texts; use at most 4096"),
    ({"grammar": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000}, "nested more than 100 deep"),
    ({"grammar": 'start: "a"~1..999999999'}, "repeats 999999999 times"),
    ({"grammar": rules(5_000)}, "grammar has 5002 rules; use at most 4096"),
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"regex": "(?=a)b"}, "look-around"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": "(("}, "unclosed group"),
    ({"json_schema": {"$ref": "#"}}, "no text satisfies it"),
    ({"json_schema": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}}, "no text"),
    ({"json_schema": {"allOf": [{"$ref": "#"}, {"type": "object"}]}}, "circular references"),
    ({"json_schema": {"$ref": "file:///etc/passwd"}}, "not present in a registry"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 4}}, "json_schema"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json_schema": {"type": "string", "format": "nonsense"}}, "Unknown format: nonsense"),
    ({"json_schema": references(4_000)}, "references nest too deeply"),
    ({"grammar": rules(4_000)}, "rules or references nest too deeply"),
    ({"json_schema": wide(1_000)}, "Current row has 3999 items; max is 2000"),
    ({"grammar": DOUBLING}, "Too many items"),
    ({"grammar": "start: missing"}, 'unknown name: "missing"'),
    ({"grammar": "root ::= missing"}, "missing"),
    ({"grammar": "so be it"}, "grammar cannot be used"),
]

HARD: list[dict[str, Any]] = [
    {"regex": "(x+x+)+y"},
    {"regex": "(a|aa)+b"},
    {"regex": "(a|b)*a(a|b){30}"},
    {"regex": "((a{1,100}){1,100}){1,100}"},
    {"regex": ".*a.{0,500}b.{0,500}c"},
    {"json_schema": {"type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}$"}},
    {"json_schema": {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
                     "$ref": "#/$defs/t"}},
    {"json_schema": wide(450)},
    {"grammar": 'start: start start | "a" | ""'},
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), MALFORMED)
def test_a_malformed_spec_names_the_field_and_the_fix(fields, param, message):
    with pytest.raises(RequestError, match=message) as caught:
        GrammarSpec(**fields)
    assert str(caught.value.param) == param


@pytest.mark.parametrize(("fields", "message"), TOO_LARGE)
def test_what_is_too_large_is_refused_before_any_library_sees_it(fields, message):
    start = time.monotonic()
    with pytest.raises(RequestError, match=message) as caught:
        GrammarSpec(**fields)
    assert time.monotonic() - start < 1
    assert [caught.value.param] == list(fields)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_the_library_refuses_or_dies_of_is_an_error_of_the_request(fields, message, compiler):
    with pytest.raises(RequestError, match=message) as caught:
        compiler.compile(GrammarSpec(**fields))
    assert [caught.value.param] == list(fields)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert compiler.compile(GrammarSpec(choice=("still", "here"))).state().accept(0) is False


@pytest.mark.parametrize("fields", HARD, ids=range(len(HARD)))
def test_a_hard_grammar_ends_or_goes_on_quickly_while_others_are_served(fields, compiler):
    other = compiler.compile(GrammarSpec(regex="[a-z]*")).state()
    letter, done, ticks = tiny_tokenizer().encode("e")[0], threading.Event(), [time.monotonic()]

    def serve() -> None:
        while not done.is_set():
            other.allowed()
            assert other.accept(letter)
            other.rollback(1)
            ticks.append(time.monotonic())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        slowest, refusal = lead(compiler, GrammarSpec(**fields))
    finally:
        done.set()
        thread.join()
    assert refusal is None or refusal.param in fields
    # A step takes milliseconds and the other thread never waits for a compilation of seconds;
    # the bounds leave room for a busy machine.
    assert slowest < 1
    assert max(end - start for start, end in pairwise(ticks)) < 2


def lead(compiler: GrammarCompiler, spec: GrammarSpec) -> tuple[float, RequestError | None]:
    """Follow a grammar for some tokens; the slowest step in seconds, and why it went no further."""
    slowest = 0.0
    try:
        state = compiler.compile(spec).state()
        while not state.is_finished and state.num_accepted < 30:
            start = time.monotonic()
            allowed = int.from_bytes(state.allowed().tobytes(), "little")
            assert state.accept(allowed.bit_length() - 1)
            slowest = max(slowest, time.monotonic() - start)
    except RequestError as error:
        return slowest, error
    return slowest, None


def test_a_grammar_that_takes_too_long_meets_the_deadline_and_the_next_is_served():
    with GrammarCompiler(tiny_tokenizer(), deadline_s=0.2) as compiler:
        quick, slow = GrammarSpec(regex="a+"), GrammarSpec(json_schema=wide(2_500))
        assert compiler.compile(quick)
        with pytest.raises(RequestError, match=r"takes more than 0\.2 s to compile"):
            compiler.compile(slow)
        late = compiler.submit(slow)
        assert compiler.compile(quick), "a grammar that is remembered waits for nothing"
        assert not late.done()
        assert isinstance(late.exception(), RequestError)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_a_grammar_that_takes_too_much_memory_is_refused_and_the_next_is_served():
    with GrammarCompiler(tiny_tokenizer(), memory_mb=40) as compiler:
        with pytest.raises(RequestError, match="takes more than 40 MB to compile"):
            compiler.compile(GrammarSpec(json_schema=wide(2_500)))
        assert compiler.compile(GrammarSpec(regex="a+"))


def test_two_thousand_grammars_leave_a_bounded_trace(compiler):
    with GrammarCompiler(tiny_tokenizer(), max_entries=100, max_bytes=9_000) as small:
        specs = [GrammarSpec(regex=f"[a-z]{{1,{number}}}") for number in range(1, 2_001)]
        futures = [small.submit(spec) for spec in specs]
        assert all(
            future.result().spec is spec for future, spec in zip(futures, specs, strict=True)
        )
        assert small.num_remembered == 100
        big = GrammarSpec(regex="b" * 4_000)
        small.compile(big)
        assert small.num_remembered < 100, "its text pushed others out"
        small.compile(GrammarSpec(regex="c" * 5_000))
        assert small.num_remembered == 0, "one that is larger than all the room is not kept"


def test_one_grammar_asked_for_at_once_is_compiled_once(compiler):
    spec = GrammarSpec(json_schema=wide(400))
    with ThreadPoolExecutor(8) as pool:
        compiled = {id(each) for each in pool.map(compiler.compile, [spec] * 8)}
    again = compiler.compile(GrammarSpec(json_schema=json.dumps(wide(400))))
    assert len(compiled) == 1
    assert id(again) not in compiled, "each later request has its own"


def test_a_child_that_was_killed_is_replaced():
    vocabulary = Vocabulary(tiny_tokenizer())
    checker = Checker(vocabulary, limits={}, deadline_s=30, memory_mb=256)
    try:
        checker.check(GrammarSpec(regex="a"))
        first = checker._child
        assert first is not None
        first.kill()
        first.wait()
        assert checker.check(GrammarSpec(regex="b")) == "start: /b/"
        assert checker._child is not first
    finally:
        checker.close()


def test_closing_fails_what_waits_and_refuses_what_comes():
    compiler = GrammarCompiler(tiny_tokenizer())
    compiler.compile(GrammarSpec(regex="a"))
    futures = [compiler.submit(GrammarSpec(json_schema=wide(2_000 + i))) for i in range(3)]
    compiler.close()
    for future in futures:
        assert isinstance(future.exception(timeout=30), ServerError)
    with pytest.raises(ServerError, match="is closed"):
        compiler.submit(GrammarSpec(regex="a"))
    compiler.close()
    GrammarCompiler(tiny_tokenizer()).close()


def test_a_tokenizer_that_ends_nothing_says_so():
    endless = Tokenizer.train(TEXTS, vocab_size=300, special_tokens=())
    with GrammarCompiler(endless) as compiler:
        with pytest.raises(ConfigError, match="needs a token that ends a text"):
            compiler.compile(GrammarSpec(regex="a"))
    with GrammarCompiler(endless, stop_ids=[5, 10**6]) as compiler:
        state = compiler.compile(GrammarSpec(regex="a?")).state()
        assert state.accept(5)
        assert not state.accept(10**6)
