"""The decorator of every compiled function.

Machine code is kept on disk beside the source (or in numba's cache folder when that cannot be
written), so only the first use on a machine waits for the compiler. numba looks at the file of a
function alone to see whether its code is stale, not at the files of the functions it calls; here
the sources of the whole folder are part of the key, so an edit anywhere compiles anew.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


class _Cache(FunctionCache):
    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _SOURCES)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the types it is called with; it runs without the interpreter lock.

    Arguments and results are numbers, numpy arrays and tuples of them. Inside, an int64 combined
    with a uint64 becomes a float64: hashes stay uint64 throughout.
    """
    return _kept(njit(nogil=True)(function), function)


def compiled_inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that is called millions of times: it makes no array and returns none.

    Without this, every call counts its references to each array up and down, atomically, which
    takes longer than cutting off a pre-token. Slices are arrays too; pass places instead.
    """
    without_counting: Any = {"nogil": True, "_nrt": False}
    return _kept(njit(**without_counting)(function), function)


def _kept(dispatcher: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    dispatcher._cache = _Cache(function)
    return dispatcher
