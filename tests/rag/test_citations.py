import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.rag import Embedder, Hit
from llmlab.rag.citations import cite
from tests.rag.words_embedder import words_embedder

BRIDGE = (
    "The Miravel bridge was opened in 1937.\nIt spans the river\nTolm. Its span is 1,412 metres."
)
PARIS = "Paris is the capital of France. Lyon is known for its silk."
HITS = [Hit("bridge.txt", 100, 100 + len(BRIDGE), BRIDGE), Hit("paris.md", 0, len(PARIS), PARIS)]


def _cite(answer: str, question: str = "What about it?"):
    return cite(answer, question, HITS, words_embedder().encode)


def _quotes(answer: str, question: str = "What about it?") -> list[tuple[int, str, str]]:
    return [(c.marker, c.quote, c.origin) for c in _cite(answer, question)[0]]


@pytest.mark.parametrize(
    "answer",
    [
        "The bridge was opened in 1937 [1].",
        "The bridge was opened in 1937. [1]",
        "[1] The bridge was opened in 1937.",
        "The bridge was opened in 1937 [ 1 ].",
        "In 1937 the bridge was opened [1][1].",
    ],
)
def test_markers_are_understood_wherever_models_put_them(answer):
    assert _quotes(answer) == [(1, "The Miravel bridge was opened in 1937.", "model")]


def test_each_sentence_gets_its_own_quote():
    found = _quotes("The bridge was opened in 1937 [1]. Paris is the capital of France [2].")
    assert [(marker, origin) for marker, _, origin in found] == [(1, "model"), (2, "model")]


def test_quotes_keep_the_blanks_of_the_document():
    citations, _ = _cite("The bridge spans the river Tolm [1].")
    assert citations[0].quote == "It spans the river\nTolm."
    assert BRIDGE[citations[0].start - 100 : citations[0].end - 100] == citations[0].quote


def test_words_in_quotation_marks_are_found_verbatim():
    (citation,), _ = _cite('Paris is the "capital of   france" [2].')
    assert citation.quote == "capital of France"
    assert citation.support == 1.0


def test_a_good_claim_with_a_wrong_marker_is_attributed():
    assert _quotes("Paris is the capital of France [1].") == [
        (2, "Paris is the capital of France.", "attributed")
    ]


def test_two_markers_must_both_fit():
    found = _quotes("Paris is the capital of France [1, 2].")
    assert found == [(2, "Paris is the capital of France.", "model")]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("When was the bridge opened?", "The bridge was opened in 1938 [1]."),  # wrong number
        ("How long is the span?", "Its span is 412 metres [1]."),
        ("What is the capital of France?", "The capital of France is Marseille [2]."),
        ("What is the capital of France?", "The sources do not say."),
        ("Where is it?", "I don't know."),
    ],
)
def test_what_no_source_says_has_no_citation(question, answer):
    citations, unsupported = _cite(answer, question)
    assert citations == ()
    assert len(unsupported) == 1


def test_thousands_separators_do_not_matter():
    assert _quotes("The span is 1412 metres.")[0][:2] == (1, "Its span is 1,412 metres.")


def test_a_short_answer_is_attributed_by_what_it_adds():
    assert _quotes("Paris.", "What is the capital of France?")[0][0] == 2


def test_other_words_of_the_same_meaning_are_found(minilm: Embedder):
    question = "Which city is the seat of the French government?"
    citations, unsupported = cite("France's capital city is Paris.", question, HITS, minilm.encode)
    assert not unsupported
    assert citations[0].quote == "Paris is the capital of France."


@settings(max_examples=100, deadline=None)
@given(
    answer=st.lists(
        st.sampled_from(
            [
                "Paris",
                "bridge ",
                "[1]",
                "[2]. ",
                "[7]",
                ". ",
                '"Miravel bridge was"',
                "1937 ",
                "é\n",
            ]
        )
    ).map("".join)
)
def test_every_quote_is_in_its_document(answer):
    citations, _ = _cite(answer)
    for citation in citations:
        hit = HITS[citation.marker - 1]
        assert hit.text[citation.start - hit.start : citation.end - hit.start] == citation.quote
        assert citation.quote
        assert np.isfinite(citation.support)


def test_a_heading_states_nothing():
    text = "# functools.lru_cache\n\nThe lru_cache decorator keeps the latest results."
    hits = [Hit("functools.md", 0, len(text), text)]
    (citation,), _ = cite("The functools.lru_cache decorator.", "?", hits, words_embedder().encode)
    assert citation.quote == "The lru_cache decorator keeps the latest results."
