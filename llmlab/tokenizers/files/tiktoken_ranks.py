"""Rank files of tiktoken (`cl100k_base.tiktoken`) and the pair of files GPT-2 came with.

A `.tiktoken` file has one line a token: its bytes in base64, a space, its rank, which is its id.
GPT-2's pair is `vocab.bpe` (merges) beside `encoder.json` (token to id); `merges.txt` beside
`vocab.json` is the same pair under later names. A rank file does not say how text is cut nor which
special tokens there are; for the files OpenAI published both are known by the file's name.

tiktoken joins, of all neighbours, the two whose joined bytes have the lowest rank. A list of merges
says the same with one merge a token, in the order of the ranks: merges never reach across the edges
of the bytes that become a token, so inside these bytes they happen in the order in which they
happen when the token stands alone, and the last two parts of a token are the same in every text.
(All pairs of tokens that spell a token, as converters often list them, give the same ids with more
than twice the merges.) A token that its own merges do not reach is taken only as a whole
pre-token, which is what `ignore_merges` says.

Not here: how text is cut (splits.py), merging (models/bpe.py). Only reading; nothing is written.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from llmlab.errors import ConfigError, TokenizerError
from llmlab.tokenizers.alphabet import CHARS, spell

_END_OF_TEXT = "<|endoftext|>"
_PAIRS = {"vocab.bpe": "encoder.json", "merges.txt": "vocab.json"}
_MAX_RANK = 2**24

Parts = tuple[bytes, bytes]
"""The two tokens that become one."""


@dataclass(frozen=True)
class _Published:
    split: str
    special_tokens: Mapping[str, int]


_GPT2 = _Published("gpt2", {_END_OF_TEXT: 50256})
_PUBLISHED = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "cl100k_base": _Published(
        "cl100k",
        {
            _END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": _Published("o200k", {_END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}


class VocabArguments(TypedDict):
    """What `Tokenizer.from_vocab` takes."""

    tokens: dict[str, int]
    """Token, spelled in the byte alphabet, to id; special tokens as plain text. Ids may have
    gaps."""
    merges: list[tuple[str, str]]
    split: str
    special_tokens: list[str]
    eos_token: str | None
    ignore_merges: bool


def read_rank_file(
    path: Path | str,
    *,
    split: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> VocabArguments:
    """Read a vocabulary and its merges: `Tokenizer.from_vocab(**read_rank_file(path))`.

    Args:
        path: a `.tiktoken` file, or `vocab.bpe`, `encoder.json`, `merges.txt`, `vocab.json`, or
            the folder that holds such a pair.
        split: name of the way text is cut; unset for the published files and for pairs.
        special_tokens: text to id; unset takes those of the published file. Of a pair, the tokens
            that no merge makes are special and this must stay unset.

    Raises:
        TokenizerError: a file is missing or damaged; named with the line.
        ConfigError: `split` is needed, or `special_tokens` is given for a pair.
    """
    path = Path(path)
    pair = _pair_of(path)
    if pair is None:
        return _read_ranks(path, split, special_tokens)
    if special_tokens is not None:
        raise ConfigError(
            f"special_tokens is given for {path}, which has ids for its own; leave it out"
        )
    return _read_pair(*pair, split=split or "gpt2")


def ranks_of_file(path: Path | str) -> dict[bytes, int]:
    """Read the bytes and ranks of a `.tiktoken` file.

    Raises:
        TokenizerError: the file is missing, a line is damaged, a token or rank is there twice, or
            one of the 256 bytes has no token.
    """
    path = Path(path)
    if not path.is_file():
        raise TokenizerError(f"{path} is not a file; give the path of a .tiktoken file")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line:
            continue
        token, rank = _read_line(line, path, number)
        if token in ranks:
            raise _damaged(path, number, f"token {token!r} is there for the second time")
        ranks[token] = rank
    if len(set(ranks.values())) < len(ranks):
        raise TokenizerError(f"{path}: two tokens have the same rank; fetch the file again")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{path} has no token for {len(missing)} of the 256 bytes, the first one "
            f"0x{missing[0]:02X}; it is cut short or no rank file, fetch it again"
        )
    return ranks


def merges_of_ranks(ranks: Mapping[bytes, int]) -> tuple[list[Parts], list[bytes]]:
    """Find the merges that make the tokens.

    Args:
        ranks: token to rank; every single byte is there.

    Returns:
        One merge a token in the order of the ranks, and the tokens that merges do not reach.
    """
    merges: list[Parts] = []
    unreached: list[bytes] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            parts = _last_parts(token, ranks)
            merges.append(parts) if parts else unreached.append(token)
    return merges, unreached


def _last_parts(token: bytes, ranks: Mapping[bytes, int]) -> Parts | None:
    """Merge the bytes of a token until two parts are left; None when merging ends earlier.

    Tokens are short, so looking at all neighbours again after each merge is the fast way.
    """
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        lowest, where = _MAX_RANK, -1
        for at in range(len(parts) - 1):
            rank = ranks.get(parts[at] + parts[at + 1], _MAX_RANK)
            if rank < lowest:
                lowest, where = rank, at
        if where < 0:
            return None
        parts[where : where + 2] = [parts[where] + parts[where + 1]]
    return parts[0], parts[1]


def _read_ranks(
    path: Path, split: str | None, special_tokens: Mapping[str, int] | None
) -> VocabArguments:
    published = _PUBLISHED.get(path.stem)
    if split is None:
        if published is None:
            raise ConfigError(
                f"split is not given, and {path.name} is none of the published files "
                f"({', '.join(_PUBLISHED)}); name the way text is cut, such as split='cl100k'"
            )
        split = published.split
    if special_tokens is None:
        special_tokens = published.special_tokens if published else {}
    ranks = ranks_of_file(path)
    merges, unreached = merges_of_ranks(ranks)
    tokens = {spell(token): rank for token, rank in ranks.items()}
    _check_special(special_tokens, tokens, path)
    return VocabArguments(
        tokens=tokens | dict(special_tokens),
        merges=[(spell(left), spell(right)) for left, right in merges],
        split=split,
        special_tokens=list(special_tokens),
        eos_token=_END_OF_TEXT if _END_OF_TEXT in special_tokens else None,
        ignore_merges=bool(unreached),
    )


def _check_special(
    special_tokens: Mapping[str, int], tokens: Mapping[str, int], path: Path
) -> None:
    taken = set(tokens.values())
    for token, token_id in special_tokens.items():
        if token in tokens or token_id in taken or not 0 <= token_id < _MAX_RANK:
            raise TokenizerError(
                f"special token {token!r} with id {token_id} cannot be added to {path}: the token "
                f"or the id is in the file already, or the id is not from 0 to {_MAX_RANK - 1}; "
                "give another one"
            )
        taken.add(token_id)


def _read_line(line: bytes, path: Path, number: int) -> tuple[bytes, int]:
    fields = line.split()
    if len(fields) != 2:
        raise _damaged(path, number, f"{len(fields)} fields, not a token and its rank")
    try:
        token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
    except (binascii.Error, ValueError) as error:
        raise _damaged(path, number, str(error)) from error
    if not token or not 0 <= rank < _MAX_RANK:
        raise _damaged(path, number, f"token {token!r} with rank {rank}")
    return token, rank


def _damaged(path: Path, number: int, problem: str) -> TokenizerError:
    return TokenizerError(
        f"{path}, line {number}: {problem}; a line is a token in base64, a space and a rank. "
        "Fetch the file again"
    )


# -- GPT-2's pair ----------------------------------------------------------------------------------


def is_rank_file(path: Path) -> bool:
    """Tell from its name whether a file holds ranks, or is one of GPT-2's pair."""
    names = {*_PAIRS, *_PAIRS.values()}
    return path.is_file() and (path.suffix == ".tiktoken" or path.name in names)


def _pair_of(path: Path) -> tuple[Path, Path] | None:
    """Return the files of merges and of ids that a path means, or None for a rank file."""
    folder = path if path.is_dir() else path.parent
    for merges, ids in _PAIRS.items():
        if path.name in (merges, ids) or (path.is_dir() and (folder / merges).is_file()):
            return folder / merges, folder / ids
    if path.is_dir():
        raise TokenizerError(
            f"{path} has neither vocab.bpe nor merges.txt; give the path of a .tiktoken file, or a "
            "folder with vocab.bpe and encoder.json"
        )
    return None


def _read_pair(merges_file: Path, ids_file: Path, *, split: str) -> VocabArguments:
    for path in (merges_file, ids_file):
        if not path.is_file():
            raise TokenizerError(
                f"{path} is missing; {merges_file.name} and {ids_file.name} belong together"
            )
    merges = list(_read_merges(merges_file))
    tokens = _read_ids(ids_file)
    made = {left + right for left, right in merges} | set(CHARS)
    lacking = sorted(made - tokens.keys())
    if lacking:
        raise TokenizerError(
            f"{ids_file} has no id for {lacking[0]!r}, which {merges_file.name} makes or needs "
            f"({len(lacking)} in all); the two files do not belong together, fetch both again"
        )
    special = [token for token in tokens if token not in made]
    return VocabArguments(
        tokens=tokens,
        merges=merges,
        split=split,
        special_tokens=special,
        eos_token=_END_OF_TEXT if _END_OF_TEXT in special else None,
        ignore_merges=False,
    )


def _read_merges(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        fields = line.rstrip("\r").split(" ")
        if len(fields) != 2 or not all(fields):
            raise TokenizerError(
                f"{path}, line {number}: {line!r} is not two tokens with a space between; "
                "fetch the file again"
            )
        yield fields[0], fields[1]


def _read_ids(path: Path) -> dict[str, int]:
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}; fetch the file again") from error
    if not isinstance(tokens, dict) or not all(
        type(number) is int and 0 <= number < _MAX_RANK for number in tokens.values()
    ):
        raise TokenizerError(f"{path} is not an object of tokens and ids; fetch the file again")
    return tokens
