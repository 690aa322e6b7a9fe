"""Words of a text, for full-text queries and for comparing an answer with its sources.

Not here: ranking (SQLite's FTS5 does it), sentences (sentences.py).
"""

import re

_FUNCTION_WORDS = """
    a about after all also am an and any are as at be because been before being but by can could
    did do does doing for from had has have having he her hers him his how i if in into is it
    its me more most my no nor not of on once one only or other our out over own same she should so
    some such than that the their them then there these they this those through to too under
    until up very was we were what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English words that carry no topic."""

_MAX_TERMS = 64
_SUFFIXES = ("ingly", "edly", "ing", "ies", "ed", "es", "ly", "s")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, in order."""
    return re.findall(r"\w+", text.casefold())


def content_stems(text: str) -> frozenset[str]:
    """Return the stems of the words that carry a topic."""
    return frozenset(stem(word) for word in words(text) if word not in STOP_WORDS)


def numbers(text: str) -> frozenset[str]:
    """Return the numbers in a text, thousands separators removed: `1,234.50` is `1234.50`."""
    found = re.findall(r"\d(?:[\d,.]*\d)?", text)
    return frozenset(number.replace(",", "") for number in found)


def stem(word: str) -> str:
    """Strip one common English ending, so that `wings` meets `wing` and `tested` meets `test`."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            base = word[: -len(suffix)] + ("y" if suffix == "ies" else "")
            return base[:-1] if base[-1:] == "e" else base
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def fts_query(text: str) -> str:
    """Turn any text into an FTS5 query that cannot be a syntax error: quoted words joined by OR.

    Returns:
        The query; empty when the text has no word. Stop words are left out unless they are all
        there is. At most 64 different words count.
    """
    found = list(dict.fromkeys(words(text)))
    terms = [word for word in found if word not in STOP_WORDS] or found
    return " OR ".join(f'"{term}"' for term in terms[:_MAX_TERMS])
