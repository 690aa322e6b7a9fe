"""From texts to a pipeline: count the pre-tokens, learn a vocabulary, put the parts together.

| algorithm | pre-tokens | vocabulary | gives back the text |
|---|---|---|---|
| bpe | a split by name (splits.py) | 256 bytes and merges | exactly |
| unigram | words, each with its space | pieces by probability, 256 bytes | exactly, but U+2581 |
| wordpiece | words and punctuation marks | words and their parts | words with single spaces |
| word | words, runs of spaces, runs of marks | the most frequent ones | what it knows |
| char | characters | the most frequent ones | what it knows |

Every algorithm counts distinct pre-tokens first, in 64-bit integers and bounded memory
(compiled/counting.py). Not here: the algorithms (trainers/).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llmlab.errors import DataError
from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.compiled.counting import PieceCounts, count_pieces
from llmlab.tokenizers.cuts import CUTS, Cut
from llmlab.tokenizers.decoders import (
    SPACE_MARK,
    ByteLevelDecoder,
    FusingDecoder,
    SentencePieceDecoder,
    WordPieceDecoder,
)
from llmlab.tokenizers.models.bpe import ByteLevelBPE
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.models.word_level import WordLevel
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.normalizers import Bert, Normalizer, Replace, normalized
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.plan import UNKNOWN, LearningPlan
from llmlab.tokenizers.scan_rules import BERT_RULES, METASPACE_RULES, WHITESPACE_RULES, ScanRules
from llmlab.tokenizers.splits import find_split
from llmlab.tokenizers.trainers.bpe import BYTE_CHARS, learn_bpe
from llmlab.tokenizers.trainers.unigram import learn_unigram
from llmlab.tokenizers.trainers.wordpiece import learn_wordpiece
from llmlab.tokenizers.trainers.words import learn_characters, learn_words
from llmlab.track import OnProgress

NUM_BYTES = 256


def learn(texts: Iterable[str], plan: LearningPlan, on_progress: OnProgress) -> Pipeline:
    """Learn a vocabulary and return the pipeline that uses it.

    Args:
        texts: read once, a batch at a time.
        plan: what to learn.
        on_progress: called with the state of the counting and learning.

    Raises:
        DataError: the texts are empty.
        ConfigError: the alphabet leaves no room.
    """
    match plan.algorithm:
        case "bpe":
            return _bpe(texts, plan, on_progress)
        case "unigram":
            return _unigram(texts, plan, on_progress)
        case "wordpiece":
            return _wordpiece(texts, plan, on_progress)
        case "word" | "char":
            return _word_level(texts, plan, on_progress)


def _bpe(texts: Iterable[str], plan: LearningPlan, on_progress: OnProgress) -> Pipeline:
    split = find_split(plan.split, digits=plan.digits)
    merges = learn_bpe(
        _counted(texts, split.rules, plan, on_progress),
        num_merges=plan.vocab_size - len(plan.special_tokens) - len(BYTE_CHARS),
        min_frequency=plan.min_frequency,
        reserved=frozenset(plan.special_tokens),
        on_progress=on_progress,
    )
    learnt = dict.fromkeys(left + right for left, right in merges)
    vocab = _numbered([*plan.special_tokens, *BYTE_CHARS, *learnt])
    return Pipeline(
        added_tokens=_special(plan.special_tokens, vocab),
        split=split,
        model=ByteLevelBPE(vocab=vocab, merges=tuple(merges)),
        decoder=ByteLevelDecoder(),
    )


def _unigram(texts: Iterable[str], plan: LearningPlan, on_progress: OnProgress) -> Pipeline:
    special = (*plan.special_tokens, UNKNOWN)
    learnt = learn_unigram(
        _counted(texts, METASPACE_RULES, plan, on_progress),
        vocab_size=plan.vocab_size - len(plan.special_tokens),
        limit_alphabet=plan.limit_alphabet,
        min_frequency=plan.min_frequency,
        num_threads=plan.num_threads,
        on_progress=on_progress,
    )
    pieces = [(piece, score) for piece, score in learnt.pieces[1:] if piece not in special]
    model = Unigram(
        pieces=(*((token, 0.0) for token in special), *pieces),
        unk_id=len(plan.special_tokens),
        byte_fallback=True,
        unmatched=frozenset(range(len(special) + NUM_BYTES)),
        single_precision=False,
    )
    return Pipeline(
        added_tokens=_special(special, model.vocab),
        normalizers=(Replace(" ", SPACE_MARK),),
        split=CUTS["marks"],
        model=model,
        decoder=SentencePieceDecoder(),
    )


def _wordpiece(texts: Iterable[str], plan: LearningPlan, on_progress: OnProgress) -> Pipeline:
    steps = (Bert(lowercase=plan.lowercase),)
    cut = CUTS["bert"]
    counts = _counted(texts, BERT_RULES, plan, on_progress)
    special = (*plan.special_tokens, UNKNOWN)
    tokens = learn_wordpiece(
        _cut_again(_decoded(counts), steps, cut),
        vocab_size=plan.vocab_size,
        min_frequency=plan.min_frequency,
        limit_alphabet=plan.limit_alphabet or 1000,
        special_tokens=special,
        on_progress=on_progress,
    )
    vocab = _numbered(tokens)
    return Pipeline(
        added_tokens=_special(special, vocab),
        normalizers=steps,
        split=cut,
        model=WordPiece(vocab, UNKNOWN),
        decoder=WordPieceDecoder(),
    )


def _word_level(texts: Iterable[str], plan: LearningPlan, on_progress: OnProgress) -> Pipeline:
    cut = CUTS["chars" if plan.algorithm == "char" else "words"]
    counts = _counted(texts, WHITESPACE_RULES, plan, on_progress)
    chunks = _decoded(counts)
    special = (*plan.special_tokens, UNKNOWN)
    learn_tokens = learn_characters if plan.algorithm == "char" else learn_words
    tokens = learn_tokens(
        chunks if plan.algorithm == "char" else _cut_again(chunks, (), cut),
        vocab_size=min(plan.vocab_size, len(special) + (plan.limit_alphabet or plan.vocab_size)),
        min_frequency=plan.min_frequency,
        special_tokens=special,
    )
    vocab = _numbered(tokens)
    return Pipeline(
        added_tokens=_special(special, vocab),
        split=cut,
        model=WordLevel(vocab, UNKNOWN),
        decoder=FusingDecoder(),
    )


def _decoded(counts: PieceCounts) -> dict[str, int]:
    return {piece.decode(): count for piece, count in counts.items()}


def _cut_again(chunks: Mapping[str, int], steps: Sequence[Normalizer], cut: Cut) -> Counter[str]:
    """Count the pieces of chunks that are normalised and cut, each distinct one once."""
    pieces: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for piece in cut.pieces(normalized(steps, chunk)):
            pieces[piece] += count
    return pieces


def _counted(
    texts: Iterable[str], rules: ScanRules, plan: LearningPlan, on_progress: OnProgress
) -> PieceCounts:
    counts = count_pieces(texts, rules, num_threads=plan.num_threads, on_progress=on_progress)
    if not len(counts):
        raise DataError("the corpus is empty (no text at all); give texts to learn from")
    return counts


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _special(tokens: Iterable[str], vocab: Mapping[str, int]) -> tuple[AddedToken, ...]:
    return tuple(AddedToken(vocab[token], token) for token in tokens)
