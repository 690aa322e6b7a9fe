import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.serve.pages import PagePool
from llmlab.serve.prefix_cache import PrefixCache


@given(data=st.data())
def test_no_page_has_two_owners_and_none_is_lost(data):
    pool = PagePool(data.draw(st.integers(1, 20)), page_len=4)
    owned: list[list[int]] = []
    for _ in range(data.draw(st.integers(0, 40))):
        if owned and data.draw(st.booleans()):
            pool.give_back(owned.pop(data.draw(st.integers(0, len(owned) - 1))))
        else:
            owned.append(pool.take(data.draw(st.integers(0, pool.num_free))))
        pages = [page for each in owned for page in each]
        assert len(set(pages)) == len(pages)
        assert pool.num_free + len(pages) == pool.num_pages
    for pages in owned:
        pool.give_back(pages)
    assert sorted(pool.take(pool.num_pages)) == list(range(pool.num_pages))


def test_pages_come_in_order_and_come_back_in_order():
    pool = PagePool(8, page_len=4)
    first = pool.take(3)
    assert first == [0, 1, 2]
    pool.give_back(first)
    assert pool.take(4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_pages_for_tokens(tokens, pages):
    assert PagePool(1, page_len=4).pages_for(tokens) == pages


def test_taking_too_many_takes_none():
    pool = PagePool(3, page_len=4)
    with pytest.raises(ValueError, match="4 pages wanted, 3 free"):
        pool.take(4)
    assert pool.num_free == 3


def test_giving_back_twice_is_refused():
    pool = PagePool(3, page_len=4)
    pages = pool.take(1)
    pool.give_back(pages)
    with pytest.raises(ValueError, match="page 0 is free already"):
        pool.give_back(pages)


def test_a_shared_page_is_free_when_its_last_owner_gives_it_back():
    pool = PagePool(2, page_len=4)
    (page,) = pool.take(1)
    pool.share([page])
    assert pool.num_owners(page) == 2
    pool.give_back([page])
    assert pool.num_free == 1
    pool.give_back([page])
    assert pool.num_free == 2
    with pytest.raises(ValueError, match="page 0 is free and cannot be shared"):
        pool.share([page])


def cached_pool(num_pages: int, texts: list[list[int]]) -> PagePool:
    """A pool whose pages, of one token each, hold `texts`, one after the other, owned by nobody."""
    cache = PrefixCache(page_len=1)
    pool = PagePool(num_pages, 1, cache)
    owned = [pool.take(len(text)) for text in texts]
    for number, (text, pages) in enumerate(zip(texts, owned, strict=True)):
        parent = (str(number), None)
        for token, page in zip(text, pages, strict=True):
            parent = cache.add(parent, [token], page)
    for pages in owned:
        pool.give_back(pages)
    return pool


def test_cached_pages_are_taken_after_free_ones_least_recently_used_and_last_first():
    pool = cached_pool(7, [[1, 2, 3], [4, 5]])
    assert (pool.num_free, pool.num_cached) == (7, 5)
    pool.share([0])  # the first page of the first text is used once more
    pool.give_back([0])
    assert [pool.take(1)[0] for _ in range(7)] == [5, 6, 2, 1, 4, 3, 0]
    assert (pool.num_free, pool.num_cached) == (0, 0)


def test_content_is_found_until_its_page_is_taken():
    pool = cached_pool(3, [[1, 2, 3]])
    cache = pool.cache
    assert cache is not None
    assert cache.find(("0", None), [1, 2, 3], 3)[0] == [0, 1, 2]
    pool.take(1)
    assert cache.find(("0", None), [1, 2, 3], 3)[0] == [0, 1]
    assert 2 not in cache
    assert len(cache) == 2
