"""Tokens as people can read them: nothing invisible, nothing that acts on a terminal or a page.

Not here: HTML escaping (the template does it), Markdown escaping (tables.py).
"""

import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
"""Unicode categories that are shown by number: controls, formats, unassigned, odd spaces."""

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(data: bytes, *, space: str = "␣", newline: str = "\\n", max_chars: int = 0) -> str:
    r"""Return the bytes of a token as harmless text.

    Spaces become a mark, other invisible characters their escape (`\t`, `\u200b`), bytes that are
    no UTF-8 their hex in angle brackets. Characters that join others, as in emoji, stay inside a
    token; a combining mark at its start stands on a dotted circle.

    Args:
        data: the token's bytes.
        space: what stands for U+0020.
        newline: what stands for U+000A.
        max_chars: cut longer text off, with an ellipsis; 0 never cuts.
    """
    text = data.decode("utf-8", "surrogateescape")
    if max_chars and len(text) > max_chars:
        text = text[: max_chars - 1] + "…"
    marks = {" ": space, "\n": newline}
    shown = [marks.get(char) or _shown(char, inside=at > 0) for at, char in enumerate(text)]
    circle = "◌" if text and unicodedata.category(text[0]).startswith("M") else ""
    return circle + "".join(shown)


def hex_bytes(data: bytes) -> str:
    """Return bytes in hex, as `E2 82 AC`."""
    return data.hex(" ").upper()


def is_text(data: bytes) -> bool:
    """Tell whether bytes are whole characters."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shown(char: str, *, inside: bool) -> str:
    if unicodedata.category(char) not in _UNSAFE:
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape smuggled through
        return f"⟨{code - 0xDC00:02X}⟩"
    if inside and (code in (0x200C, 0x200D) or 0xE0020 <= code <= 0xE007F):
        return char
    escape = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return _SHORT.get(char, escape if code < 0x10000 else f"\\U{code:08x}")
