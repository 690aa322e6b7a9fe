"""The tokenizer inside a GGUF file.

Not here: what its keys mean (llmlab/tokenizers/files/gguf_vocab.py), how it encodes
(llmlab/tokenizers).
"""

from llmlab.errors import ModelError, TokenizerError
from llmlab.model.gguf import GgufFile
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.files.gguf_vocab import tokenizer_of_metadata


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """Build the tokenizer a GGUF file holds.

    Raises:
        ModelError: the file has no tokenizer of a kind that is read, or a damaged one.
    """
    try:
        return tokenizer_of_metadata(file.metadata)
    except TokenizerError as error:
        raise ModelError(f"{file.path}: {error}") from error
