"""Bytes as printable characters: how byte-level vocabularies are spelled in files.

GPT-2 gave each of the 256 bytes one visible character, so that tokens can be JSON strings: the
printable Latin-1 characters stand for themselves and the other 68 bytes are U+0100 and up, so a
space is `Ġ` and a newline `Ċ`. (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", and every byte-level tokenizer.json since.)
"""

from llmlab.errors import TokenizerError

_PRINTABLE = frozenset([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

CHARS: tuple[str, ...] = tuple(
    chr(byte if byte in _PRINTABLE else 0x100 + _OTHERS.index(byte)) for byte in range(256)
)
"""The character of each byte."""

_BYTES = {ord(char): byte for byte, char in enumerate(CHARS)}
_SPELL = dict(enumerate(CHARS))


def spell(data: bytes) -> str:
    """Write bytes in the alphabet."""
    return data.decode("latin-1").translate(_SPELL)


def unspell(token: str) -> bytes:
    """Read a token written in the alphabet; one with other characters in it is its own UTF-8."""
    try:
        return bytes([_BYTES[ord(char)] for char in token])
    except KeyError:
        return token.encode()


def utf8(text: str) -> bytes:
    """Encode text as UTF-8.

    Raises:
        TokenizerError: the text has a lone surrogate, which no UTF-8 can hold.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X}, which is not a "
            "character; read the input with errors='replace', or drop it"
        ) from error
