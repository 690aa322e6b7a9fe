"""Learn the merges of byte-level BPE.

Each merge joins the most frequent pair of neighbouring tokens; of equally frequent pairs the one
whose left id, then right id, is smallest: the rule of Hugging Face `tokenizers`, so the merges are
the same. Ids are bytes in the order of their characters (alphabet.py), then merges as learnt. All
256 bytes are there whatever the text, so a limit on the alphabet makes no sense here; it belongs
to methods over characters (wordpiece.py). The definition, in a page of Python, is
`llmlab.foundations.bpe`; the loop is compiled/learning.py. Not here: counting pre-tokens
(compiled/counting.py).

Source: Sennrich et al., arXiv:1508.07909.
"""

from collections.abc import Collection

import numpy as np

from llmlab.tokenizers.alphabet import CHARS
from llmlab.tokenizers.compiled.counting import PieceCounts
from llmlab.tokenizers.compiled.learning import learn_pairs
from llmlab.track import OnProgress, silent

MIN_FREQUENCY = 2
"""A pair seen once is no pattern."""

BYTE_CHARS: tuple[str, ...] = tuple(sorted(CHARS))
"""The single-byte tokens in the order of their ids."""

_IDS = {char: number for number, char in enumerate(BYTE_CHARS)}
_ID_OF_BYTE = np.array([_IDS[char] for char in CHARS], np.int32)


def learn_bpe(
    counts: PieceCounts,
    *,
    num_merges: int,
    min_frequency: int = MIN_FREQUENCY,
    reserved: Collection[str] = (),
    on_progress: OnProgress = silent,
) -> list[tuple[str, str]]:
    """Learn merges, best first.

    No two merges make the same token: the bytes of a token are merged alike wherever they stand
    as one, so the last step is the same everywhere.

    Args:
        counts: distinct pre-tokens with how often each was seen; their sum is below 2^63.
        num_merges: new tokens wanted; fewer come back when no pair is frequent enough.
        min_frequency: a pair seen less often is not merged.
        reserved: spellings that no merge may make (the special tokens).
        on_progress: called every few hundred merges.

    Returns:
        Pairs of tokens, spelled in the byte alphabet.

    Raises:
        DataError: the distinct pre-tokens have more than 2^31 bytes.
    """
    spellings = list(BYTE_CHARS)
    pairs: list[tuple[str, str]] = []
    for merges in learn_pairs(
        _ID_OF_BYTE[counts.data],
        counts.starts,
        counts.counts,
        num_symbols=len(BYTE_CHARS),
        num_merges=num_merges,
        min_frequency=min_frequency,
        reserved=[[_IDS[char] for char in text] for text in reserved if _IDS.keys() >= set(text)],
    ):
        for left, right in merges.tolist():
            pairs.append((spellings[left], spellings[right]))
            spellings.append(spellings[left] + spellings[right])
        on_progress({"merge": f"{len(pairs)}/{num_merges}"})
    return pairs
