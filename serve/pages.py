"""The pages of the key/value cache: how many owners each has, nothing about what is in them.

A page is in use (it has owners), free, or cached: it has no owner, but its content can still be
found by a new request, until the page is needed for something else.

Not here: tensors (runner.py), what a page holds (prefix_cache.py), when a sequence gives its
pages up (scheduler.py).
Source: PagedAttention, arXiv 2309.06180.
"""

from collections import OrderedDict
from collections.abc import Sequence

from llmlab.serve.prefix_cache import PrefixCache


class PagePool:
    """A fixed number of pages, each owned by any number of sequences.

    Taking, sharing and returning a page are O(1). Free pages are taken first, those returned last
    before the others (they are the ones still in a processor cache), in ascending order where that
    is possible, so that a sequence tends to own neighbours. Then cached ones, the least recently
    used first and of one sequence the last page first: a page is useless without those before it.

    Args:
        num_pages: pages in all; they are numbered from 0.
        page_len: tokens per page.
        cache: knows what pages hold; without one, a page that nobody owns is free.
    """

    def __init__(self, num_pages: int, page_len: int, cache: PrefixCache | None = None) -> None:
        self.num_pages = num_pages
        self.page_len = page_len
        self.cache = cache
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._num_owners = [0] * num_pages

    @property
    def num_free(self) -> int:
        """Pages that nobody owns, cached ones included: as many can be taken."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Pages that nobody owns and whose content can be found."""
        return len(self._cached)

    def num_owners(self, page: int) -> int:
        """Return how many own `page`."""
        return self._num_owners[page]

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_len)

    def take(self, count: int) -> list[int]:
        """Give `count` pages to the caller, whose content may be overwritten.

        Raises:
            ValueError: fewer are free; nothing is taken.
        """
        if count > self.num_free:
            raise ValueError(f"{count} pages wanted, {self.num_free} free")
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in taken:
            self._num_owners[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """Add an owner to each of `pages`, which are in use or cached.

        Raises:
            ValueError: a page is free, so it holds nothing.
        """
        for page in pages:
            if not self._num_owners[page]:
                if page not in self._cached:
                    raise ValueError(f"page {page} is free and cannot be shared")
                del self._cached[page]
            self._num_owners[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """Take an owner from each of `pages`, which are in the order of their tokens.

        Raises:
            ValueError: a page is free already.
        """
        for page in reversed(pages):
            if not self._num_owners[page]:
                raise ValueError(f"page {page} is free already")
            self._num_owners[page] -= 1
            if not self._num_owners[page]:
                if self.cache is not None and page in self.cache:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def _evict(self) -> int:
        """Return the least recently used cached page, its content given up."""
        page, _ = self._cached.popitem(last=False)
        if self.cache is not None:
            self.cache.forget(page)
        return page
