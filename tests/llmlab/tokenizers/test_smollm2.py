"""SmolLM2's own tokenizer, from its GGUF file, against `tokenizers` on real text."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llmlab.data import stdlib_docstrings
from llmlab.errors import ModelError
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_tokenizer import gguf_tokenizer
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.tokenizers import Tokenizer
from tests.llmlab.tokenizers.samples import TORTURE, pipeline_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    try:
        path = smollm2_gguf()
    except ModelError as error:
        pytest.skip(str(error))
    return gguf_tokenizer(GgufFile(path))


def test_ids_are_those_of_the_published_pipeline(smollm2):
    # Built by hand: what `transformers` makes of the GGUF file leaves out the cutting of digits.
    pipeline = pipeline_of(smollm2)
    theirs = tokenizers.Tokenizer(models.BPE(pipeline.vocab, list(pipeline.model.merges)))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens(list(smollm2.special_tokens))
    texts = [*TORTURE, *(each.text for each in list(stdlib_docstrings())[::4])]
    encoded = theirs.encode_batch(texts)
    assert [smollm2.encode(text, allow_special=True) for text in texts] == [
        each.ids for each in encoded
    ]
    for each in encoded:
        assert smollm2.decode(each.ids) == theirs.decode(each.ids, skip_special_tokens=False)


def test_bytes_it_lacks_are_dropped(smollm2):
    # 21 of the 256 bytes have no token, 0xC1 and U+0004 among them.
    assert sum(not smollm2.encode(chr(code)) for code in range(128)) == 6
    assert smollm2.decode(smollm2.encode("a\x04b")) == "ab"


def test_its_template_gives_a_mask(smollm2):
    chat = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes"},
    ]
    ids, mask = smollm2.encode_chat_masked(chat)
    said = [token for token, is_said in zip(ids, mask, strict=True) if is_said]
    assert smollm2.decode(said) == "4.<|im_end|>Yes<|im_end|>"
    assert ids == smollm2.encode(
        smollm2.render_chat(chat, add_generation_prompt=False), allow_special=True
    )
