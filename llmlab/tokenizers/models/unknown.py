"""What becomes of characters that have no piece, in models that work on characters."""

from collections.abc import Iterable, Iterator, Mapping

from llmlab.errors import TokenizerError
from llmlab.tokenizers.alphabet import utf8

NO_PIECE = -1
"""Stands for an id where a character has none."""


class UnknownCharacters:
    """Writes a run of unknown characters as its bytes, or as one unknown piece.

    Args:
        vocab: piece to id.
        unk_id: the id of a run of unknown characters.
        byte_fallback: whether it is written as bytes instead, the pieces `<0x00>` to `<0xFF>`.

    Raises:
        TokenizerError: byte fallback is asked for and a byte has no piece.
    """

    def __init__(
        self, vocab: Mapping[str, int], *, unk_id: int | None, byte_fallback: bool
    ) -> None:
        self._unk_id = unk_id
        self._byte_ids = byte_ids(vocab) if byte_fallback else None

    def filled(
        self, text: str, path: Iterable[tuple[int, int, int]]
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (id, start, end) for a path in which `NO_PIECE` stands for unknown characters.

        The bytes of one character share its span.

        Raises:
            TokenizerError: a character is unknown, and the model has nothing to write for it.
        """
        run = -1  # where a run of unknown characters starts
        for token, start, end in path:
            if token == NO_PIECE:
                run = start if run < 0 else run
                continue
            if run >= 0:
                yield from self._written(text, run, start)
                run = -1
            yield token, start, end
        if run >= 0:
            yield from self._written(text, run, len(text))

    def _written(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        if self._byte_ids is not None:
            for at in range(start, end):
                for byte in utf8(text[at]):
                    yield self._byte_ids[byte], at, at + 1
        elif self._unk_id is not None:
            yield self._unk_id, start, end
        else:
            raise TokenizerError(
                f"{text[start:end]!r} has no piece and the model has neither an unknown piece "
                "nor byte fallback; train it with one of them"
            )


def byte_ids(vocab: Mapping[str, int]) -> list[int]:
    """Return the id of each byte's piece, `<0x00>` to `<0xFF>`.

    Raises:
        TokenizerError: a byte has none.
    """
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    missing = [piece for piece in pieces if piece not in vocab]
    if missing:
        raise TokenizerError(
            f"byte fallback needs a piece for every byte, and {len(missing)} are missing, "
            f"{missing[0]} first; the file is damaged or byte_fallback should be false"
        )
    return [vocab[piece] for piece in pieces]
