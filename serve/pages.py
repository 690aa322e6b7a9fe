"""The pages of the key/value cache: who owns which, nothing about what is in them.

Not here: tensors (runner.py), when a sequence gives its pages up (scheduler.py).
Source: PagedAttention, arXiv 2309.06180.
"""


class PagePool:
    """A fixed number of pages, each either free or owned by one sequence.

    Taking and returning a page are O(1). Pages returned last are taken first (they are the ones
    still in a processor cache), in ascending order where that is possible, so that a sequence
    tends to own neighbours.

    Args:
        num_pages: pages in all; they are numbered from 0.
        page_len: tokens per page.
    """

    def __init__(self, num_pages: int, page_len: int) -> None:
        self.num_pages = num_pages
        self.page_len = page_len
        self._free = list(range(num_pages - 1, -1, -1))
        self._owned = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_len)

    def take(self, count: int) -> list[int]:
        """Give `count` free pages to the caller.

        Raises:
            ValueError: fewer are free; nothing is taken.
        """
        if count > len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owned[page] = 1
        return taken

    def give_back(self, pages: list[int]) -> None:
        """Make `pages` free again.

        Raises:
            ValueError: a page is free already.
        """
        for page in reversed(pages):
            if not self._owned[page]:
                raise ValueError(f"page {page} is free already")
            self._owned[page] = 0
            self._free.append(page)
