import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.serve.pages import PagePool


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
