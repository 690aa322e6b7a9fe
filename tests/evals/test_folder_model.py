"""A model folder scored here, against transformers one sample at a time, and against lm-eval."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmlab.errors import EvalError
from llmlab.evals import FolderModel
from llmlab.evals.folder_model import folder_fingerprint
from llmlab.evals.models import Failure, GenerateRequest, Loglikelihood, TextLogprob
from llmlab.tokenizers import Tokenizer
from tests.evals.conftest import CONTEXT_LEN, PAIRS, TEXTS

TOLERANCE = 1e-4  # sums of up to 300 float32 log probabilities of size 6, in another order


@pytest.fixture(scope="module")
def model(folder: Path) -> FolderModel:
    return FolderModel(folder, device="cpu")


@pytest.fixture(scope="module")
def stock(folder: Path) -> tuple[Any, Any]:
    """transformers' model and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def reference(stock: tuple[Any, Any], input_ids: list[int], num: int) -> torch.Tensor:
    """Log probabilities (num, V) that predict what follows the last `num` inputs."""
    with torch.no_grad():
        logits = stock[0](torch.tensor([input_ids])).logits[0, -num:]
    return logits.log_softmax(-1)


def test_pairs_equal_transformers(model: FolderModel, stock: tuple[Any, Any]) -> None:
    tokenizer = stock[1]
    for pair, got in zip(PAIRS, model.loglikelihood(PAIRS), strict=True):
        context = pair[0].rstrip()
        context_ids = tokenizer.encode(context, add_special_tokens=False)
        target_ids = tokenizer.encode(pair[0] + pair[1], add_special_tokens=False)
        target_ids = target_ids[len(context_ids) :]
        fed = [*(context_ids or [tokenizer.eos_token_id]), *target_ids][-CONTEXT_LEN - 1 : -1]
        logprobs = reference(stock, fed, len(target_ids))
        expected = logprobs.gather(-1, torch.tensor(target_ids)[:, None]).sum()
        assert isinstance(got, Loglikelihood)
        assert got.logprob == pytest.approx(float(expected), abs=TOLERANCE)
        assert got.is_greedy == (logprobs.argmax(-1).tolist() == target_ids)
        assert got.num_tokens == len(target_ids)


def test_a_short_text_equals_transformers(model: FolderModel, stock: tuple[Any, Any]) -> None:
    (got,) = model.loglikelihood_rolling([TEXTS[0]])
    ids = stock[1].encode(TEXTS[0], add_special_tokens=False)
    logprobs = reference(stock, [stock[1].eos_token_id, *ids[:-1]], len(ids))
    expected = float(logprobs.gather(-1, torch.tensor(ids)[:, None]).sum())
    assert isinstance(got, TextLogprob)
    assert got.logprob == pytest.approx(expected, abs=TOLERANCE)
    assert (got.num_tokens, got.num_bytes) == (len(ids), len(TEXTS[0].encode()))


def test_the_likeliest_token_is_greedy(
    model: FolderModel, stock: tuple[Any, Any], folder: Path
) -> None:
    tokenizer = Tokenizer.load(folder)
    num_greedy = 0
    for context in ["hello", "Answer:", "the quick", "def", "name", "fox jumps over"]:
        ids = tokenizer.encode(context)
        best = int(reference(stock, ids, 1).argmax())
        text = tokenizer.decode([best])
        if tokenizer.encode(context + text) == [*ids, best]:  # else it is other tokens
            (got,) = model.loglikelihood([(context, text)])
            assert isinstance(got, Loglikelihood)
            assert got.is_greedy
            num_greedy += 1
    assert num_greedy > 0


def test_batches_do_not_change_the_numbers(folder: Path, model: FolderModel) -> None:
    alone = FolderModel(folder, device="cpu", batch_tokens=1)
    for one, many in zip(alone.loglikelihood(PAIRS), model.loglikelihood(PAIRS), strict=True):
        assert isinstance(one, Loglikelihood)
        assert isinstance(many, Loglikelihood)
        assert one.logprob == pytest.approx(many.logprob, abs=TOLERANCE)
        assert one.is_greedy == many.is_greedy


def test_an_empty_text_and_an_empty_continuation(model: FolderModel) -> None:
    assert model.loglikelihood_rolling([""]) == [TextLogprob(0.0, 0, 0)]
    scored, failed = model.loglikelihood([("a", "b"), ("a", "")])
    assert isinstance(scored, Loglikelihood)
    assert isinstance(failed, Failure)
    assert model.loglikelihood([]) == []


def test_generation_is_repeatable_and_a_long_prompt_fails_alone(model: FolderModel) -> None:
    short = GenerateRequest(message="hello", prompt="hello", max_tokens=8)
    long = GenerateRequest(message="hello " * 90, prompt="hello " * 90, max_tokens=8)
    first, failed, second = model.generate([short, long, short])
    assert first == second
    assert isinstance(first, str)
    assert isinstance(failed, Failure)
    assert f"does not fit {CONTEXT_LEN}" in failed.error


def test_max_len_is_checked(folder: Path) -> None:
    with pytest.raises(EvalError, match="max_len=97 is not between 1 and the model's 96"):
        FolderModel(folder, device="cpu", max_len=97)


def test_the_fingerprint_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert folder_fingerprint(copy) == folder_fingerprint(folder)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert folder_fingerprint(copy) != folder_fingerprint(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # lm-eval's own dependencies warn when imported
def test_per_sample_numbers_equal_lm_evals(folder: Path, model: FolderModel) -> None:
    huggingface = pytest.importorskip(
        "lm_eval.models.huggingface", reason="needs `pip install lm-eval==0.4.13`"
    )
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    theirs = huggingface.HFLM(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=2, max_length=CONTEXT_LEN
    )
    requests = [
        instance(request_type="loglikelihood", doc={}, arguments=pair, idx=at)
        for at, pair in enumerate(PAIRS)
    ]
    for (logprob, is_greedy), got in zip(
        theirs.loglikelihood(requests, disable_tqdm=True), model.loglikelihood(PAIRS), strict=True
    ):
        assert isinstance(got, Loglikelihood)
        assert math.isclose(got.logprob, logprob, abs_tol=TOLERANCE)
        assert got.is_greedy == is_greedy
    texts = [
        instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=at)
        for at, text in enumerate(TEXTS)
    ]
    for expected, got in zip(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True),
        model.loglikelihood_rolling(TEXTS),
        strict=True,
    ):
        assert isinstance(got, TextLogprob)
        assert math.isclose(got.logprob, expected, rel_tol=1e-6, abs_tol=TOLERANCE)
