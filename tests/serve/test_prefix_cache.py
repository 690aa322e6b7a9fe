"""The index of pages by content: found are the same tokens after the same tokens, nothing else."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from llmlab.serve.prefix_cache import Parent, PrefixCache

ROOT = (None, None)


def fill(cache: PrefixCache, ids: list[int], first_page: int, root: Parent = ROOT) -> list[int]:
    """Add the full pages of a text; return their numbers."""
    parent, P = root, cache.page_len
    pages = list(range(first_page, first_page + len(ids) // P))
    for at, page in enumerate(pages):
        parent = cache.add(parent, ids[at * P : (at + 1) * P], page)
    return pages


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), max_size=8), st.integers(1, 3)
)
def test_a_text_is_found_as_far_as_another_began_the_same(texts, page_len):
    cache, known, first = PrefixCache(page_len), [], 0
    for text in texts:
        best = max((common(text, other) for other in known), default=0) // page_len
        pages, _ = cache.find(ROOT, text, len(text))
        assert len(pages) == best
        assert cache.find(ROOT, text, len(text) - 1)[0] == pages[: (len(text) - 1) // page_len]
        fill(cache, text, first)
        known.append(text)
        first += 20


def common(left: list[int], right: list[int]) -> int:
    same = [a == b for a, b in zip(left, right, strict=False)]
    return same.index(False) if False in same else len(same)


def test_two_texts_with_one_hash_are_two():
    """CPython hashes a whole number to its rest modulo a prime, so these two surely collide."""
    here, there = [5, 6], [5 + sys.hash_info.modulus, 6]
    assert hash((ROOT, tuple(here))) == hash((ROOT, tuple(there)))
    cache = PrefixCache(2)
    fill(cache, here, 0)
    assert cache.find(ROOT, there, 2) == ([], ROOT)
    fill(cache, there, 1)
    assert cache.find(ROOT, here, 2)[0] == [0]
    assert cache.find(ROOT, there, 2)[0] == [1]


def test_the_same_page_after_another_beginning_is_another():
    cache = PrefixCache(2)
    fill(cache, [1, 1, 7, 7], 0)
    fill(cache, [2, 2, 7, 7], 2)
    assert cache.find(ROOT, [1, 1, 7, 7], 4)[0] == [0, 1]
    assert cache.find(ROOT, [2, 2, 7, 7], 4)[0] == [2, 3]
    assert cache.find(ROOT, [7, 7], 2)[0] == []
    assert cache.find(("salt", None), [1, 1], 2)[0] == []


def test_content_computed_twice_is_kept_once_and_its_chain_goes_on():
    cache = PrefixCache(2)
    fill(cache, [1, 1], 0)
    fill(cache, [1, 1, 2, 2], 4)
    assert 4 not in cache
    assert cache.find(ROOT, [1, 1, 2, 2], 4)[0] == [0, 5]


def test_what_follows_a_forgotten_page_is_not_taken_for_what_follows_its_successor():
    """An identity is never used twice: page 1 belongs to a chain that is gone."""
    cache = PrefixCache(2)
    fill(cache, [1, 1, 2, 2], 0)
    cache.forget(0)
    fill(cache, [1, 1], 7)
    assert cache.find(ROOT, [1, 1, 2, 2], 4)[0] == [7]
    assert 1 in cache
    cache.forget(1)
    assert len(cache) == 1
