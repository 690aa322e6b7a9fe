"""Which page holds which tokens, so that a prompt seen before is not computed again.

Only full pages. What the keys and values of a page are depends on every token before it, so an
entry is found by the identity of the entry before it and by its own tokens: a chain, which begins
at a root. The dict compares the tokens themselves, so two texts whose hashes are equal are still
two; and an identity is never used twice, so an entry whose predecessor was forgotten is found by
nobody until its page is needed.

Not here: who owns a page and which one is forgotten first (pages.py), tensors.
Source: RadixAttention, arXiv 2312.07104; hashed pages instead of a tree, as vLLM has them.
"""

from collections.abc import Sequence

Parent = int | tuple[str | None, str | None]
"""An entry, or the root of a chain: a cache salt and the name of an adapter."""

_Key = tuple[Parent, tuple[int, ...]]


class PrefixCache:
    """An index of full pages by their content; empty at first.

    Finding and adding a page take one look into a dict each, whatever the number of pages.

    Args:
        page_len: tokens per page.
    """

    def __init__(self, page_len: int) -> None:
        self.page_len = page_len
        self._entries: dict[_Key, tuple[int, int]] = {}  # (identity, page)
        self._keys: dict[int, _Key] = {}  # by page
        self._num_added = 0

    def __contains__(self, page: int) -> bool:
        """Whether the content of `page` can be found."""
        return page in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def find(
        self, root: Parent, token_ids: Sequence[int], num_tokens: int
    ) -> tuple[list[int], Parent]:
        """Return the pages that hold the beginning of `token_ids`, and the last one's entry.

        Args:
            root: where the chain begins; nothing is shared between roots.
            token_ids: what is to be computed.
            num_tokens: how many of them may be found.
        """
        pages: list[int] = []
        parent, P = root, self.page_len
        for end in range(P, num_tokens + 1, P):
            entry = self._entries.get((parent, tuple(token_ids[end - P : end])))
            if entry is None:
                break
            parent = entry[0]
            pages.append(entry[1])
        return pages, parent

    def add(self, parent: Parent, tokens: Sequence[int], page: int) -> Parent:
        """Make a computed page findable and return its entry.

        A second page with the same content stays unknown; the first one's entry is returned.

        Args:
            parent: the entry of the page before it, or the root.
            tokens: the page's tokens.
            page: its number.
        """
        key = parent, tuple(tokens)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._num_added, page
            self._num_added += 1
            self._entries[key] = entry
            self._keys[page] = key
        return entry[0]

    def forget(self, page: int) -> None:
        """Find `page` no more: something else will be written into it."""
        del self._entries[self._keys.pop(page)]
