"""The second half: a real instruct model imported, served, asked about documents, and scored.

Each function is one stage and takes the journal. SmolLM2 and the sentence embedder travel as Python
packages; where one is not installed, its stages are left out with one line that says how to get it.
"""

from pathlib import Path

import openai

from llmlab.errors import LabError, ModelError
from llmlab.evals import Results, evaluate
from llmlab.evals.stats import Estimate
from llmlab.model.gguf_import import import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf
from llmlab.quickstart.config import QuickstartConfig
from llmlab.quickstart.handbook import write_handbook
from llmlab.quickstart.journal import Answered, Journal, Quote, Score
from llmlab.rag import Index, Pipeline
from llmlab.serve import ServeConfig, running_server

CHAT_QUESTION = "Name the three primary colours, in one short sentence."

QUESTIONS = (
    "How do I copy a file together with its metadata?",
    "What does functools.lru_cache do?",
    "How can I pick a random element from a list?",
)
"""What the handbook is asked."""

LIKELIHOOD_TASKS = {"bits_per_byte": 4, "choices_small": 60, "python_signatures": 40}
"""Tasks scored on a model folder, and how many examples of each: a minute's work."""

METRICS = ("bits_per_byte", "acc", "match")
"""What the report shows of each task; the results folders hold everything."""

SERVED_TASK = "short_answers"
"""The task whose answers come through the server."""


def import_smollm2(config: QuickstartConfig, journal: Journal) -> Path | None:
    """Turn the GGUF of SmolLM2-135M-Instruct into a model folder; None when it is not installed."""
    try:
        file = smollm2_gguf()
    except ModelError as error:
        journal.skip(f"SmolLM2 (chat, questions, its scores): {error}")
        return None
    with journal.stage("import SmolLM2 from its GGUF") as stage:
        folder = import_gguf(file, config.out / "smollm2", on_progress=journal.show)
        stage.summary = f"{file.name}, {file.stat().st_size / 1e6:.0f} MB, to a model folder"
    return folder


def chat(url: str, journal: Journal) -> None:
    """Ask the served SmolLM2 one question through the official client, streaming."""
    with journal.stage("chat with SmolLM2") as stage:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        stream = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": CHAT_QUESTION}],
            max_tokens=60,
            temperature=0,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        answer = "".join(pieces)
        journal.served.append(
            ("SmolLM2-135M-Instruct, imported and served:", f"{CHAT_QUESTION}\n", answer)
        )
        stage.summary = answer.replace("\n", " ")[:80]


def ask_the_handbook(config: QuickstartConfig, url: str, journal: Journal) -> None:
    """Index documentation strings and ask three questions."""
    try:
        with journal.stage("index the handbook") as stage:
            num_entries = write_handbook(config.out / "handbook")
            index = Index(config.out / "index")
            report = index.add_folder(config.out / "handbook", on_progress=journal.show)
            stage.summary = f"{num_entries} entries, {report.chunks} passages"
    except LabError as error:
        journal.skip(f"questions from documents: {error}")
        return
    with journal.stage("answer questions from it") as stage, index:
        with Pipeline(index, base_url=f"{url}/v1", k=3, max_tokens=64) as pipeline:
            for question in QUESTIONS:
                answer = pipeline.ask(question)
                quotes = [
                    Quote(quote=c.quote, place=f"{Path(c.doc).name}, characters {c.start}–{c.end}")
                    for c in answer.citations
                ]
                once = tuple(dict.fromkeys(quotes))
                journal.answers.append(
                    Answered(question=question, text=answer.text, citations=once)
                )
        cited = sum(bool(answer.citations) for answer in journal.answers)
        stage.summary = f"{len(QUESTIONS)} answers, {cited} with citations"


def serving(model: Path, name: str) -> ServeConfig:
    """The settings of a server on a free port."""
    return ServeConfig(model=model, name=name, port=0)


def score(config: QuickstartConfig, models: dict[str, Path], journal: Journal) -> None:
    """Evaluate each model: likelihoods on its folder, generation through the server."""
    journal.models = list(models)
    tables = [_evaluate(config, name, folder, journal) for name, folder in models.items()]
    for task, metric in dict.fromkeys(key for table in tables for key in table):
        estimates = [table.get((task, metric)) for table in tables]
        journal.scores.append(
            Score(
                task=task,
                metric=metric,
                count=max(found.num_examples for found in estimates if found),
                cells=tuple(_cell(found) if found else None for found in estimates),
            )
        )


def _evaluate(
    config: QuickstartConfig, name: str, folder: Path, journal: Journal
) -> dict[tuple[str, str], Estimate]:
    out = config.out / "results" / name
    with journal.stage(f"evaluate {name}") as stage:
        found: list[Results] = []
        for task, limit in LIKELIHOOD_TASKS.items():
            found.append(
                evaluate(
                    model=folder,
                    tasks=[task],
                    out=out / task,
                    limit=limit,
                    seed=config.seed,
                    on_progress=journal.show,
                )
            )
        with running_server(serving(folder, name)) as url:
            found.append(
                evaluate(
                    base_url=f"{url}/v1",
                    tasks=[SERVED_TASK],
                    out=out / SERVED_TASK,
                    seed=config.seed,
                    on_progress=journal.show,
                )
            )
        rows = [row for results in found for row in results.rows() if row[1] in METRICS]
        stage.summary = ", ".join(f"{task} {metric} {e.value:.3f}" for task, metric, e in rows)
    return {(task, metric): estimate for task, metric, estimate in rows}


def _cell(found: Estimate) -> tuple[float, float, float]:
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    return (found.value, low, high)
