"""The numbers of a report as tables, for terminals, Markdown and the page alike."""

from collections.abc import Callable, Iterable, Sequence

from llmlab.page import Table, escape_markdown
from llmlab.tokenizers.report.measures import TextMeasures
from llmlab.tokenizers.report.run import YOUR_TEXT, Report, TokenizerFacts
from llmlab.tokenizers.report.vocabulary import Group, TokenCount

_UNKNOWN_SHOWN = 0.005
"""A smaller share of unknown tokens changes no rate."""


def compared(report: Report) -> list[Table]:
    """Return the tables that set all tokenizers side by side."""
    return [
        _compression(report),
        _by_kind(
            report,
            "tokens per word",
            "Tokens that touch a word, averaged; a word is a run of letters, in scripts that put "
            "spaces between words. The share is of words that lie within one token.",
            _word_cell,
        ),
        _by_kind(
            report,
            "characters per token",
            "Unicode characters, not bytes: what a context window holds.",
            lambda measures: f"{measures.chars_per_token:.2f}",
        ),
        _summary(report),
    ]


def vocabulary_tables(facts: TokenizerFacts) -> list[Table]:
    """Return the tables about one vocabulary."""
    found = facts.vocabulary
    return [
        _groups(
            "use of the ids in their order",
            "The bar is the share of the ids that your text uses. In BPE the order is that of the "
            "merges: what was learnt last is used least.",
            "ids",
            found.deciles,
            _used_share,
        ),
        _groups(
            "tokens by kind",
            "The bar is the share of your text's tokens. One space in front does not change a "
            "token's kind.",
            "kind",
            found.kinds,
            _share,
        ),
        _groups("tokens by length", "", "bytes", found.lengths, _share),
        _tokens("longest tokens, without runs of one character", found.longest),
        _tokens("most frequent tokens", found.frequent),
        _tokens("first ids that are never used", found.never_used),
    ]


def as_text(report: Report) -> str:
    """Return what a terminal shows: the tokenizers side by side, and the first one's tokens."""
    first = report.tokenizers[0]
    tables = [*compared(report), *vocabulary_tables(first)[:2]]
    return "\n\n".join([*(table.as_text() for table in tables), *_tops(first), *failures(report)])


def as_markdown(report: Report) -> str:
    """Return the whole report in Markdown."""
    first = report.tokenizers[0]
    parts = [f"# Tokenizer report: {escape_markdown(first.name)}"]
    parts += [table.as_markdown() for table in compared(report)]
    parts += [escape_markdown(sentence) for sentence in failures(report)]
    for facts in report.tokenizers:
        parts.append(f"# Vocabulary of {escape_markdown(facts.name)}")
        parts += [table.as_markdown() for table in vocabulary_tables(facts)]
    return "\n\n".join(parts) + "\n"


def failures(report: Report) -> list[str]:
    """Return a sentence for each tokenizer that does not give its text back."""
    sentences = []
    for facts in report.tokenizers:
        text = facts.texts[YOUR_TEXT]
        if text.first_failure is not None:
            sentences.append(
                f"{facts.name} does not give back {text.failed_documents:,} of "
                f"{text.documents:,} documents; in the first, {text.first_failure}"
            )
    return sentences


def _compression(report: Report) -> Table:
    first = report.tokenizers[0]
    rows = tuple(
        (kind, *(_rate(facts.texts[kind], first.texts[kind]) for facts in report.tokenizers))
        for kind in first.texts
    )
    note = "UTF-8 bytes of text each token stands for; more is fewer tokens for the same text."
    if len(report.tokenizers) > 1:
        note += f" In brackets, against {first.name}."
    note += " Where tokens are unknown, text is lost, and their share stands in brackets."
    return Table("bytes per token", note, _headings(report), rows)


def _rate(measures: TextMeasures, reference: TextMeasures) -> str:
    rate, least = f"{measures.bytes_per_token:.2f}", reference.bytes_per_token
    if measures.unknown_share >= _UNKNOWN_SHOWN:
        return f"{rate} ({measures.unknown_share:.0%} unknown)"
    if measures is reference or not least:
        return rate
    difference = f"{measures.bytes_per_token / least - 1:+.0%}".replace("-0%", "+0%")
    return f"{rate} ({difference})"


def _by_kind(report: Report, title: str, note: str, cell: Callable[[TextMeasures], str]) -> Table:
    rows = (
        (kind, *(cell(facts.texts[kind]) for facts in report.tokenizers))
        for kind in report.tokenizers[0].texts
    )
    return Table(title, note, _headings(report), tuple(rows))


def _word_cell(measures: TextMeasures) -> str:
    if measures.tokens_per_word is None or measures.one_token_words is None:
        return "–"
    return f"{measures.tokens_per_word:.2f} ({measures.one_token_words:.0%})"


def _summary(report: Report) -> Table:
    text = [facts.texts[YOUR_TEXT] for facts in report.tokenizers]
    rows = (
        ("vocabulary", *(f"{facts.vocab_size:,}" for facts in report.tokenizers)),
        ("ids used by your text", *(_used(facts) for facts in report.tokenizers)),
        ("tokens", *(f"{measures.tokens:,}" for measures in text)),
        ("unknown tokens", *(_part(m.unknown_tokens, m.tokens) for m in text)),
        ("documents not given back", *(f"{m.failed_documents:,} of {m.documents:,}" for m in text)),
        ("encoding, MB/s here", *(f"{facts.encode_mb_per_s:.1f}" for facts in report.tokenizers)),
    )
    note = (
        f"Your text: {text[0].documents:,} documents, {text[0].bytes / 1e6:.2f} MB, "
        f"{text[0].words:,} words. A document is given back when decode(encode(text)) == text. "
        "Speed is that of encode_batch_to_arrays on this machine, as it was loaded."
    )
    return Table("your text", note, _headings(report), rows)


def _groups(
    title: str, note: str, heading: str, groups: Sequence[Group], bar: Callable[[Group], float]
) -> Table:
    rows = tuple(
        (group.name, f"{group.tokens:,}", f"{_used_share(group):.0%}", f"{group.share:.1%}")
        for group in groups
    )
    columns = (heading, "tokens", "used", "of your text's tokens")
    return Table(title, note, columns, rows, bars=tuple(map(bar, groups)))


def _tokens(title: str, tokens: Iterable[TokenCount]) -> Table:
    rows = tuple(
        (f"{t.id}", t.text, f"{t.num_bytes}", f"{t.count:,}", f"{t.share:.2%}") for t in tokens
    )
    return Table(title, "", ("id", "token", "bytes", "count", "share"), rows, token_column=1)


def _tops(facts: TokenizerFacts) -> list[str]:
    found = facts.vocabulary
    return [
        f"{title}\n  " + " ".join(token.text for token in tokens[:12])
        for title, tokens in (
            ("most frequent tokens", found.frequent),
            ("longest tokens", found.longest),
        )
        if tokens
    ]


def _headings(report: Report) -> tuple[str, ...]:
    return ("", *(facts.name for facts in report.tokenizers))


def _used(facts: TokenizerFacts) -> str:
    return _part(facts.vocabulary.used, facts.vocabulary.tokens)


def _used_share(group: Group) -> float:
    return group.used / max(group.tokens, 1)


def _share(group: Group) -> float:
    return group.share


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / max(whole, 1):.1%})"
