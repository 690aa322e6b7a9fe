"""The first half: text to tokenizer, shards, a pretrained and a finetuned model, served.

Each function is one stage and takes the journal; what it does for real is the stage's own code.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import openai
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from llmlab.data import iter_documents, pack
from llmlab.data.config import PackConfig
from llmlab.errors import ModelError
from llmlab.finetune import finetune, merge
from llmlab.finetune.config import FinetuneConfig, MergeConfig
from llmlab.model import load_model
from llmlab.pretrain import pretrain
from llmlab.pretrain.config import PretrainConfig
from llmlab.quickstart.config import QuickstartConfig
from llmlab.quickstart.instructions import QUESTION, write_instructions
from llmlab.quickstart.journal import Journal
from llmlab.serve import ServeConfig, running_server
from llmlab.tokenizers import Tokenizer

TOKENIZER_BYTES = 6_000_000
"""UTF-8 bytes the vocabulary is learnt from; more changes few merges."""

LOGITS_TOLERANCE = 1e-4
"""Largest difference allowed between our logits and those of transformers, in float32."""

CODE_PROMPT = "import os\n\n\ndef read_lines(path):\n"


def train_tokenizer(config: QuickstartConfig, journal: Journal) -> None:
    """Learn a byte-level BPE vocabulary."""
    with journal.stage("train a tokenizer") as stage:
        texts = _first_bytes(config.source, TOKENIZER_BYTES)
        tokenizer = Tokenizer.train(texts, vocab_size=config.vocab_size, on_progress=journal.show)
        tokenizer.save(config.out / "tokenizer")
        stage.summary = f"byte-level BPE, {tokenizer.vocab_size} tokens"


def pack_shards(config: QuickstartConfig, journal: Journal) -> None:
    """Tokenize the source into shards."""
    with journal.stage("pack the text into shards") as stage:
        packed = pack(
            PackConfig(
                sources=(config.source,),
                tokenizer=config.out / "tokenizer",
                out=config.out / "shards",
            ),
            journal.show,
        )
        stage.summary = (
            f"{packed.train_tokens / 1e6:.2f} M tokens to train on, "
            f"{packed.val_tokens:,} held out, {packed.bytes_per_token:.2f} bytes per token"
        )


def pretrain_model(config: QuickstartConfig, journal: Journal) -> None:
    """Pretrain for the minutes asked for."""
    with journal.stage(f"pretrain for {config.minutes:g} min") as stage:
        result = pretrain(
            PretrainConfig(
                data=(str(config.out / "shards"),),
                out=config.out / "pretrain",
                max_seconds=60 * config.minutes,
                eval_every=100,
                seed=config.seed,
            ),
            on_progress=journal.show,
        )
        if result.status == "interrupted":
            run = f"--data {config.out}/shards --out {config.out}/pretrain"
            journal.show({"note": f"go on with `llmlab pretrain {run} --resume`"})
            raise KeyboardInterrupt
        journal.bits_per_byte = result.bits_per_byte or math.nan
        stage.summary = (
            f"{result.num_parameters / 1e6:.1f} M parameters, {result.tokens / 1e6:.2f} M tokens, "
            f"{journal.bits_per_byte:.3f} bits per byte on held-out files"
        )
        journal.facts += [
            ("parameters", f"{result.num_parameters / 1e6:.1f} M"),
            ("tokens seen", f"{result.tokens / 1e6:.2f} M"),
            ("bits per byte, held out", f"{journal.bits_per_byte:.3f}"),
        ]
        journal.samples = _first_and_last_samples(config.out / "pretrain" / "samples.jsonl")


def check_with_transformers(config: QuickstartConfig, journal: Journal) -> None:
    """Load the model folder with stock transformers and compare logits.

    Raises:
        ModelError: the logits differ by more than `LOGITS_TOLERANCE`.
    """
    with journal.stage("load it in stock transformers") as stage:
        transformers_logging.disable_progress_bar()
        folder = config.out / "pretrain" / "model"
        ours, tokenizer = load_model(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        input_ids = torch.tensor([tokenizer.encode(CODE_PROMPT * 4)])  # (1, T)
        with torch.inference_mode():
            difference = (ours(input_ids) - theirs(input_ids).logits).abs().max().item()
        if difference > LOGITS_TOLERANCE:
            raise ModelError(
                f"logits of {folder} differ from transformers' by {difference:.1e}, allowed is "
                f"{LOGITS_TOLERANCE:.0e}; please report this with the folder's config.json"
            )
        stage.summary = f"same logits: largest difference {difference:.1e} in float32"
        journal.checks.append(("logits against transformers, float32", f"{difference:.1e}"))


def finetune_and_merge(config: QuickstartConfig, journal: Journal) -> None:
    """Teach it one instruction with LoRA and fold the adapter in."""
    with journal.stage("finetune with LoRA, merge") as stage:
        data = config.out / "instructions.jsonl"
        num_pairs = write_instructions(data, num_pairs=1500, seed=config.seed)
        model = config.out / "pretrain" / "model"
        result = finetune(
            FinetuneConfig(
                model=model,
                data=data,
                out=config.out / "finetune",
                max_seconds=min(20.0, 20 * config.minutes),
                learning_rate=2e-3,
                seed=config.seed,
            ),
            on_progress=journal.show,
        )
        merge(MergeConfig(adapter=result.folder, out=config.out / "model"))
        stage.summary = (
            f"{num_pairs} pairs, {result.steps} steps, loss on held-out answers "
            f"{result.base_val_loss:.2f} to {result.val_loss:.2f}"
        )


def serve_and_complete(config: QuickstartConfig, journal: Journal) -> None:
    """Start the server on the merged model and stream through the official client."""
    with journal.stage("serve it, stream a completion") as stage:
        serving = ServeConfig(model=config.out / "model", name="quickstart", port=0)
        with running_server(serving) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
            stream = client.completions.create(
                model="quickstart",
                prompt=CODE_PROMPT,
                max_tokens=80,
                temperature=0.7,
                seed=config.seed,
                stream=True,
            )
            pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
            question = QUESTION.format(summary="Return the number of lines of a file.")
            chat = client.chat.completions.create(
                model="quickstart",
                messages=[{"role": "user", "content": question}],
                max_tokens=48,
                temperature=0,
            )
        answer = chat.choices[0].message.content or ""
        journal.served += [
            ("The model continues code:", CODE_PROMPT, "".join(pieces)),
            ("After finetuning it answers one kind of question:", question + "\n", answer),
        ]
        stage.summary = f"{len(pieces)} pieces streamed through the openai client"


def _first_bytes(source: str, limit: int) -> Iterator[str]:
    total = 0
    for document in iter_documents([source]):
        yield document.text
        total += len(document.text.encode())
        if total >= limit:
            return


def _first_and_last_samples(path: Path) -> list[tuple[int, list[tuple[str, str]]]]:
    by_step: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_step[row["step"]].append((row["prompt"], row["text"]))
    steps = sorted(by_step)
    chosen = [steps[0], steps[-1]] if len(steps) > 1 else steps
    return [(step, by_step[step]) for step in chosen]
