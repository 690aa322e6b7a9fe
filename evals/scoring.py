"""A task, run on a model: three kinds of examples, their metrics, every example kept.

    choice   acc             the right choice has the highest log probability
             acc_norm        ... the highest log probability per UTF-8 byte of the choice
    text     bits_per_byte   bits of the texts over their bytes
             byte_perplexity 2 ** bits_per_byte
    answer   match           a regular expression is found in the answer, case ignored

Log probability per byte does not favour short choices, and leading white space is not counted: for
ASCII choices it is lm-eval's acc_norm, for others its acc_bytes. Not here: the model's side.
"""

import hashlib
import math
import re
import time
from collections.abc import Hashable, Mapping, Sequence

from llmlab.errors import EvalError
from llmlab.evals.models import EvalModel, Failure, GenerateRequest, Loglikelihood, TextLogprob
from llmlab.evals.results import Sample, TaskResult
from llmlab.evals.stats import Estimate, estimate
from llmlab.evals.task import (
    AnswerExample,
    ChoiceExample,
    Example,
    Task,
    TextExample,
    example_hash,
)
from llmlab.track import OnProgress, silent


def run_task(
    task: Task, model: EvalModel, *, seed: int = 0, on_progress: OnProgress = silent
) -> TaskResult:
    """Score every example of a task.

    Args:
        task: its examples are all of one kind.
        model: what is scored.
        seed: of the bootstrap.
        on_progress: told the requests answered so far.

    Raises:
        EvalError: the task has no examples, or the model cannot be asked this way at all.
    """
    started_s = time.perf_counter()
    kind = type(task.examples[0]) if task.examples else None
    if kind is ChoiceExample:
        samples, metrics = _choices(task, model, seed, on_progress)
    elif kind is TextExample:
        samples, metrics = _texts(task, model, seed, on_progress)
    elif kind is AnswerExample:
        samples, metrics = _answers(task, model, seed, on_progress)
    else:
        raise EvalError(f"task {task.name} has no examples; raise --limit or give another text")
    wall_s = time.perf_counter() - started_s
    return TaskResult(
        task.name, task.version, task.fingerprint, task.description, metrics, samples, wall_s
    )


def _choices(
    task: Task, model: EvalModel, seed: int, on_progress: OnProgress
) -> tuple[list[Sample], dict[str, Estimate]]:
    examples = [example for example in task.examples if isinstance(example, ChoiceExample)]
    pairs = [(example.context, choice) for example in examples for choice in example.choices]
    scored = iter(model.loglikelihood(pairs, on_progress=on_progress))
    samples = []
    for example in examples:
        answers = [next(scored) for _ in example.choices]
        samples.append(_choice_sample(task, example, answers))
    return samples, _means(samples, examples, ("acc", "acc_norm"), seed)


def _choice_sample(
    task: Task, example: ChoiceExample, answers: Sequence[Loglikelihood | Failure]
) -> Sample:
    target = example.choices[example.answer]
    for answer in answers:
        if isinstance(answer, Failure):
            return _sample(task, example, example.context, target, error=answer.error)
    scored = [answer for answer in answers if isinstance(answer, Loglikelihood)]
    sums = [answer.logprob for answer in scored]
    sizes = [len(choice.strip().encode()) or 1 for choice in example.choices]
    per_byte = [total / size for total, size in zip(sums, sizes, strict=True)]
    picked = sums.index(max(sums))
    scores = {
        "acc": float(picked == example.answer),
        "acc_norm": float(per_byte.index(max(per_byte)) == example.answer),
        "logprobs": sums,
        "is_greedy": [answer.is_greedy for answer in scored],
    }
    return _sample(
        task, example, example.context, target, response=example.choices[picked], scores=scores
    )


def _texts(
    task: Task, model: EvalModel, seed: int, on_progress: OnProgress
) -> tuple[list[Sample], dict[str, Estimate]]:
    examples = [example for example in task.examples if isinstance(example, TextExample)]
    answers = model.loglikelihood_rolling([e.text for e in examples], on_progress=on_progress)
    samples, bits, sizes, clusters = [], [], [], []
    for number, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        if isinstance(answer, Failure):
            samples.append(_sample(task, example, example.text, "", error=answer.error))
            continue
        samples.append(_sample(task, example, example.text, "", scores=_text_scores(answer)))
        bits.append(-answer.logprob / math.log(2))
        sizes.append(answer.num_bytes)
        clusters.append(example.cluster if example.cluster is not None else number)
    if not bits:
        return samples, {}
    number = estimate(bits, sizes, clusters=clusters, seed=seed)
    return samples, {"bits_per_byte": number, "byte_perplexity": _power_of_two(number)}


def _text_scores(answer: TextLogprob) -> dict[str, float]:
    return {
        "bits_per_byte": -answer.logprob / math.log(2) / max(answer.num_bytes, 1),
        "logprob": answer.logprob,
        "num_tokens": answer.num_tokens,
        "num_bytes": answer.num_bytes,
    }


def _power_of_two(bits: Estimate) -> Estimate:
    """Carry an estimate through 2 ** x; the standard error by the slope at the value."""
    value = 2**bits.value
    stderr = None if bits.stderr is None else bits.stderr * math.log(2) * value
    low, high = (None if end is None else 2**end for end in (bits.low, bits.high))
    return Estimate(value, stderr, low, high, bits.num_examples)


def _answers(
    task: Task, model: EvalModel, seed: int, on_progress: OnProgress
) -> tuple[list[Sample], dict[str, Estimate]]:
    examples = [example for example in task.examples if isinstance(example, AnswerExample)]
    requests = [
        GenerateRequest(message=e.message, prompt=e.prompt, max_tokens=e.max_tokens, stop=e.stop)
        for e in examples
    ]
    samples = []
    answers = model.generate(requests, on_progress=on_progress)
    for example, answer in zip(examples, answers, strict=True):
        target = " | ".join(example.accept)
        if isinstance(answer, Failure):
            samples.append(_sample(task, example, example.message, target, error=answer.error))
            continue
        right = any(re.search(pattern, answer, re.IGNORECASE) for pattern in example.accept)
        scores = {"match": float(right)}
        samples.append(
            _sample(task, example, example.message, target, response=answer, scores=scores)
        )
    return samples, _means(samples, examples, ("match",), seed)


def _means(
    samples: Sequence[Sample], examples: Sequence[Example], names: Sequence[str], seed: int
) -> dict[str, Estimate]:
    """Average metrics over the samples that were scored; {} when there is none."""
    scored, clusters = [], []
    for number, (sample, example) in enumerate(zip(samples, examples, strict=True)):
        if sample.error is None:
            scored.append(sample)
            clusters.append(_cluster(example, number))
    if not scored:
        return {}
    return {
        name: estimate([s.scores[name] for s in scored], clusters=clusters, seed=seed)
        for name in names
    }


def _cluster(example: Example, number: int) -> Hashable:
    cluster = None if isinstance(example, AnswerExample) else example.cluster
    return number if cluster is None else cluster


def _sample(
    task: Task,
    example: Example,
    prompt: str,
    target: str,
    *,
    response: str = "",
    scores: Mapping[str, object] | None = None,
    error: str | None = None,
) -> Sample:
    return Sample(
        task=task.name,
        id=example.id,
        input=prompt,
        target=target,
        response=response,
        scores=scores or {},
        doc_hash=example_hash(example),
        prompt_hash=_hash(prompt),
        target_hash=_hash(target),
        error=error,
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
