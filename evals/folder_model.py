"""A model folder, scored in this process.

Not here: which tokens are scored (windows.py). Rows are batched by length with padding at the end,
which a causal model cannot see: a row's numbers depend on its batch by no more than float rounding.
Log probabilities are float32 whatever the weights' dtype.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmlab.errors import EvalError
from llmlab.evals.models import Failure, GenerateRequest, Loglikelihood, TextLogprob
from llmlab.evals.windows import Coding, Row
from llmlab.hardware import pick_device
from llmlab.model import load_model
from llmlab.model.generation import generate_ids
from llmlab.track import OnProgress, silent

_LOGIT_VALUES = 1 << 25  # logits held at once: 128 MB in float32


class FolderModel:
    """A model folder.

    Args:
        folder: written by `save_model` or by transformers.
        device: torch device; the first GPU, or the CPU, when None.
        dtype: of the weights; float32 gives the numbers that others reproduce.
        max_len: most tokens fed at once; the model's context length when None.
        batch_tokens: tokens in a batch, padding included; decides memory, not results.

    Raises:
        ModelError: no usable model folder.
        EvalError: `max_len` is not between 1 and the model's context length, or the tokenizer has
            neither BOS nor end-of-text.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        max_len: int | None = None,
        batch_tokens: int = 4096,
    ) -> None:
        folder = Path(folder)
        self._device = torch.device(device) if device is not None else pick_device()
        self._model, self._tokenizer = load_model(folder, dtype=dtype, device=self._device)
        self._batch_tokens = batch_tokens
        context_len = self._model.config.max_position_embeddings
        if max_len is not None and not 1 <= max_len <= context_len:
            raise EvalError(f"max_len={max_len} is not between 1 and the model's {context_len}")
        self._coding = Coding(
            encode=lambda text: self._tokenizer.encode(text, allow_special=True),
            bos_ids=self._tokenizer.bos_ids,
            prefix_id=self._prefix_id(folder),
            max_len=max_len or context_len,
        )
        self.name = str(folder)
        self.fingerprint = folder_fingerprint(folder)

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, on_progress: OnProgress = silent
    ) -> list[Loglikelihood | Failure]:
        """Score (context, continuation) pairs, in order."""
        rows = [self._coding.pair_row(context, continuation) for context, continuation in pairs]
        usable = [row for row in rows if isinstance(row, Row)]
        scored = iter(self._scored(usable, on_progress))
        results: list[Loglikelihood | Failure] = []
        for row in rows:
            if isinstance(row, str):
                results.append(Failure(row))
                continue
            logprobs, is_greedy = next(scored)
            results.append(Loglikelihood(_sum(logprobs), is_greedy, len(row.target_ids)))
        return results

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, on_progress: OnProgress = silent
    ) -> list[TextLogprob | Failure]:
        """Score whole texts, in order; an empty text has log probability 0."""
        rows = [self._coding.text_rows(text) for text in texts]
        scored = iter(self._scored([row for text in rows for row in text], on_progress))
        results: list[TextLogprob | Failure] = []
        for text, windows in zip(texts, rows, strict=True):
            total = sum(_sum(next(scored)[0]) for _ in windows)
            num_tokens = sum(len(row.target_ids) for row in windows)
            results.append(TextLogprob(float(total), num_tokens, len(text.encode())))
        return results

    def generate(
        self, requests: Sequence[GenerateRequest], *, on_progress: OnProgress = silent
    ) -> list[str | Failure]:
        """Answer requests, in order, at temperature 0."""
        answers: list[str | Failure] = []
        for done, request in enumerate(requests, start=1):
            answers.append(self._answer(request))
            on_progress({"requests": f"{done}/{len(requests)}"})
        return answers

    def _answer(self, request: GenerateRequest) -> str | Failure:
        tokenizer = self._tokenizer
        in_chat = tokenizer.chat_template is not None
        if in_chat:
            prompt_ids = tokenizer.encode_chat([{"role": "user", "content": request.message}])
        else:
            prompt_ids = [*tokenizer.bos_ids, *self._coding.encode(request.prompt)]
        if len(prompt_ids) + request.max_tokens > self._model.config.max_position_embeddings:
            context_len = self._model.config.max_position_embeddings
            return Failure(f"prompt of {len(prompt_ids)} tokens does not fit {context_len}")
        stream = tokenizer.stream(skip_special_tokens=True)
        stops = tokenizer.stop_token_ids | set(self._model.config.eos_token_ids)
        text = ""
        for token_id in generate_ids(
            self._model, prompt_ids, max_tokens=request.max_tokens, stop_token_ids=stops
        ):
            if token_id in stops:
                break
            text += stream.push(token_id)
            ends = [] if in_chat else [text.find(stop) for stop in request.stop if stop in text]
            if ends:
                return text[: min(ends)]
        return text + stream.finish()

    def _prefix_id(self, folder: Path) -> int:
        for token_id in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        raise EvalError(
            f"the tokenizer of {folder} has neither bos_token nor eos_token, so nothing can stand "
            "in front of a text; add one to its tokenizer_config.json"
        )

    def _scored(self, rows: Sequence[Row], on_progress: OnProgress) -> list[tuple[Tensor, bool]]:
        """Return each row's log probabilities (targets,) and whether all were the most likely."""
        results: list[tuple[Tensor, bool]] = [(torch.empty(0), True)] * len(rows)
        done = 0
        for batch in _batches(rows, self._batch_tokens):
            scored = self._score_batch([rows[at] for at in batch])
            for at, result in zip(batch, scored, strict=True):
                results[at] = result
            done += len(batch)
            on_progress({"rows": f"{done}/{len(rows)}"})
        return results

    @torch.inference_mode()
    def _score_batch(self, rows: Sequence[Row]) -> list[tuple[Tensor, bool]]:
        T = max(len(row.input_ids) for row in rows)
        input_ids = torch.zeros(len(rows), T, dtype=torch.int64)  # (B, T)
        for at, row in enumerate(rows):
            input_ids[at, : len(row.input_ids)] = torch.tensor(row.input_ids)
        hidden = self._model.hidden(input_ids.to(self._device))  # (B, T, E)
        results = []
        for at, row in enumerate(rows):
            end, num = len(row.input_ids), len(row.target_ids)
            targets = torch.tensor(row.target_ids, device=self._device)
            results.append(self._score_targets(hidden[at, end - num : end], targets))
        return results

    def _score_targets(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, bool]:
        """Score targets (K,) from hidden states (K, E), a bounded number of logits at a time."""
        step = max(1, _LOGIT_VALUES // self._model.config.vocab_size)
        logprobs, is_greedy = [], True
        for start in range(0, len(targets), step):
            part = targets[start : start + step]
            logits = self._model.logits(hidden[start : start + step]).float()  # (k, V)
            chosen = logits.log_softmax(-1).gather(-1, part[:, None])[:, 0]  # (k,)
            logprobs.append(chosen.cpu())
            is_greedy = is_greedy and bool((logits.argmax(-1) == part).all())
        return torch.cat(logprobs), is_greedy


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 of every file that decides a model's numbers: shape, weights, tokenizer."""
    digest = hashlib.sha256()
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = [folder / name for name in names if (folder / name).is_file()]
    for file in [*files, *sorted(folder.glob("*.safetensors"))]:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of rows of similar length, longest first: what cannot fit shows at once."""
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at].input_ids))
    batch: list[int] = []
    for at in order:
        longest = len(rows[batch[0]].input_ids) if batch else 0
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _sum(logprobs: Tensor) -> float:
    return float(logprobs.double().sum())
