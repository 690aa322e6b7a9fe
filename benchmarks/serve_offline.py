"""The parts of benchmarks/serve.py without HTTP: engines in processes, asked in turn."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks.rag_cranfield import load_cranfield
from benchmarks.serve_processes import (
    Worker,
    llamacpp_command,
    llmlab_command,
    transformers_command,
)
from benchmarks.serve_setup import Setup, compared, in_turn
from benchmarks.timing import spread
from llmlab.export import ExportGgufConfig, export_gguf
from llmlab.model.safetensors_files import stored_tensors
from llmlab.tokenizers import Tokenizer

PROMPT_LEN, ANSWER_LEN = 128, 64
PREFILL_LEN = 512
SHARED_LEN, OWN_LEN = 950, 50
NUM_QUOTED = 6
QUOTED_ANSWER_LEN = 128

OURS_BF16, OURS_INT8 = "llmlab bf16", "llmlab int8"
LLAMACPP_BF16, LLAMACPP_Q8 = "llama.cpp bf16", "llama.cpp Q8_0"
TRANSFORMERS = "transformers bf16"
OFF, ON = "off", "on"


def one_stream(setup: Setup) -> dict[str, Any]:
    """Tokens a second of one stream after its first token."""
    ours = {"dtype": "bfloat16", "device": setup.device}
    setup.add_engine(OURS_BF16, lambda: llmlab_command(setup.model, **ours))
    setup.add_engine(OURS_INT8, lambda: llmlab_command(setup.model, **ours, quantize="int8"))
    if setup.device == "cpu":
        setup.add_engine(LLAMACPP_BF16, lambda: llamacpp_command(_gguf(setup, "bf16")))
        setup.add_engine(LLAMACPP_Q8, lambda: llamacpp_command(_gguf(setup, "q8_0")))
    gb_per_s: list[float] = []

    def read_memory(number: int) -> float:
        found = setup.engines[OURS_BF16].ask(limits=True)["gb_per_s"]
        if number >= 0:
            gb_per_s.append(found)
        return found

    def decode(engine: Worker) -> Callable[[int], float]:
        def tok_per_s(number: int) -> float:
            prompts = setup.prompts(number + 1, 1, PROMPT_LEN)
            return _decode_rate(engine.ask(prompts=prompts, max_tokens=ANSWER_LEN))

        return tok_per_s

    ways = {name: decode(engine) for name, engine in setup.engines.items()}
    found = in_turn({"memory GB/s": read_memory, **ways}, setup.rounds)
    del found["memory GB/s"]
    values = compared(found, [(OURS_BF16, LLAMACPP_BF16), (OURS_INT8, LLAMACPP_Q8)])
    parameters = _num_parameters(setup.model)
    for name, row in values["ways"].items():
        bytes_each = 2 if "bf16" in name else 34 / 32 if "Q8_0" in name else 1
        limit = spread(gb_per_s)["median"] * 1e9 / (parameters * bytes_each)
        row |= {"limit_tok_per_s": round(limit, 1), "of_limit": round(row["median"] / limit, 3)}
    return {
        "shape": f"{PROMPT_LEN} in, {ANSWER_LEN} out",
        "unit": "tokens/s after the first",
        "parameters": parameters,
        "gb_per_s": spread(gb_per_s),
        "versions": setup.versions,
        **values,
    }


def prefill(setup: Setup) -> dict[str, Any]:
    """Tokens a second of reading a prompt, up to its first token."""
    budget = {"max_batch_tokens": PREFILL_LEN + 32}
    setup.add_engine(OURS_BF16, lambda: llmlab_command(setup.model, dtype="bfloat16", **budget))
    setup.add_engine(TRANSFORMERS, lambda: transformers_command(setup.model, dtype="bfloat16"))
    setup.add_engine(LLAMACPP_BF16, lambda: llamacpp_command(_gguf(setup, "bf16")))

    def read(engine: Worker) -> Callable[[int], float]:
        def tok_per_s(number: int) -> float:
            prompts = setup.prompts(number + 1, 1, PREFILL_LEN)
            return PREFILL_LEN / engine.ask(prompts=prompts, max_tokens=1)["seconds"]

        return tok_per_s

    ways = {name: read(engine) for name, engine in setup.engines.items()}
    found = in_turn(ways, 4 * setup.rounds)  # short ones, so more of them
    return {
        "shape": f"{PREFILL_LEN} in, 1 out",
        "unit": "prompt tokens/s",
        "versions": setup.versions,
        **compared(found, [(OURS_BF16, TRANSFORMERS), (OURS_BF16, LLAMACPP_BF16)]),
    }


def prefix(setup: Setup) -> dict[str, Any]:
    """Cost of the prefix cache without a hit, and time to first token with 95 % shared."""
    for name, is_on in ((OFF, False), (ON, True)):
        setup.add_engine(name, _ours(setup, prefix_cache=is_on))
    if len(setup.engines) < 2:
        return {}

    def distinct(engine: Worker) -> Callable[[int], float]:
        def tok_per_s(number: int) -> float:
            prompts = setup.prompts(number + 1, 16, PREFILL_LEN)
            seconds = engine.ask(prompts=prompts, max_tokens=16)["seconds"]
            return 16 * (PREFILL_LEN + 16) / seconds

        return tok_per_s

    ways = {name: distinct(engine) for name, engine in setup.engines.items()}
    cost = in_turn(ways, 2 * setup.rounds)  # a difference of a hundredth is looked for
    engine = setup.engines[ON]

    def cold(number: int) -> float:
        (prompt,) = setup.prompts(number + 1, 1, SHARED_LEN + OWN_LEN)
        return engine.ask(prompts=[prompt], max_tokens=1)["first_s"][0]

    def shared(number: int) -> float:
        (beginning,) = setup.prompts(1000 + number, 1, SHARED_LEN)
        first, second = setup.prompts(2000 + number, 2, OWN_LEN)
        engine.ask(prompts=[beginning + first], max_tokens=1)
        return engine.ask(prompts=[beginning + second], max_tokens=1)["first_s"][0]

    found = in_turn({"cold": cold, "shared": shared}, 2 * setup.rounds)
    return {
        "shape": f"16 prompts of {PREFILL_LEN} without a hit; {SHARED_LEN} of "
        f"{SHARED_LEN + OWN_LEN} tokens shared",
        "no_hits": compared(cost, [(ON, OFF)]),
        "first_token_s": compared(found, [("shared", "cold")]),
    }


def speculation(setup: Setup) -> dict[str, Any]:
    """Tokens a second of one stream whose answers quote the prompt, with speculation and not."""
    setup.add_engine(OFF, _ours(setup))
    setup.add_engine(ON, _ours(setup, speculate="ngram"))
    if len(setup.engines) < 2:
        return {}
    prompts = _quoting_prompts(setup)
    answers: dict[str, list[list[int]]] = {}

    def answer(name: str) -> Callable[[int], float]:
        def tok_per_s(number: int) -> float:
            found = [
                setup.engines[name].ask(prompts=[prompt], max_tokens=QUOTED_ANSWER_LEN)
                for prompt in (prompts if number >= 0 else prompts[:1])
            ]
            answers[name] = [one["token_ids"][0] for one in found]
            decode_s = sum(one["total_s"][0] - one["first_s"][0] for one in found)
            return len(found) * (QUOTED_ANSWER_LEN - 1) / decode_s

        return tok_per_s

    found = in_turn({name: answer(name) for name in setup.engines}, setup.rounds)
    same = sum(a == b for a, b in zip(answers[ON], answers[OFF], strict=True))
    return {
        "shape": f"{NUM_QUOTED} abstracts to summarise with quotes, {QUOTED_ANSWER_LEN} out",
        "unit": "tokens/s after the first",
        "same_answers": f"{same} of {NUM_QUOTED}",
        **compared(found, [(ON, OFF)]),
    }


def _ours(setup: Setup, **fields: Any) -> Callable[[], list[str]]:
    return lambda: llmlab_command(setup.model, dtype="bfloat16", **fields)


def _decode_rate(answer: dict[str, Any]) -> float:
    """Return the tokens a second of the one answer after its first token."""
    (first_s,), (total_s,), (ids,) = answer["first_s"], answer["total_s"], answer["token_ids"]
    return (len(ids) - 1) / (total_s - first_s)


def _num_parameters(model: Path) -> int:
    return sum(math.prod(tensor.shape) for tensor in stored_tensors(model).values())


def _gguf(setup: Setup, kind: Literal["bf16", "q8_0"]) -> Path:
    path = setup.folder / f"model-{kind}.gguf"
    if not path.exists():
        export_gguf(ExportGgufConfig(model=setup.model, out=path, type=kind))
    return path


def _quoting_prompts(setup: Setup) -> list[list[int]]:
    """Return questions whose answers, begun here as a model of this size needs it, quote them."""
    tokenizer = Tokenizer.load(setup.model)
    abstracts = load_cranfield(Path(os.environ["LLMLAB_DATA"]) / "cranfield").documents
    texts = [" ".join(document.text.split()) for document in abstracts]
    chosen = [text for text in texts if 600 < len(text) < 1200][:NUM_QUOTED]
    questions = [
        {"role": "user", "content": f"Text: {text}\n\nSummarise the text by quoting its most "
         "important sentences word for word."}
        for text in chosen
    ]  # fmt: skip
    begun = tokenizer.encode(
        'Here are the most important sentences of the text, quoted word for word:\n\n"'
    )
    return [tokenizer.encode_chat([question]) + begun for question in questions]
