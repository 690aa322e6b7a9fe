"""Ten thousand requests leave nothing behind."""

from pathlib import Path

import pytest

from llmlab.serve import Engine, EngineConfig, SamplingParams
from llmlab.serve.grammar.spec import GrammarSpec
from tests.tiny import tiny_model_folder

NUM_REQUESTS, WARM = 10_000, 2_000
WAYS = [
    SamplingParams(max_tokens=3, temperature=0.8, seed=1),
    SamplingParams(max_tokens=5, temperature=0, logprobs=2, repetition_penalty=1.2),
    SamplingParams(max_tokens=4, temperature=0, stop=("a",), prompt_logprobs=0),
    SamplingParams(max_tokens=6, grammar=GrammarSpec(choice=("yes", "no"))),
]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.timeout(600)
def test_memory_stays_level_over_ten_thousand_requests(tmp_path):
    config = EngineConfig(
        model=tiny_model_folder(tmp_path), dtype="float32", num_pages=120, page_len=4,
        max_running=8, speculate="ngram",
    )  # fmt: skip
    with Engine(config) as engine:
        level = 0
        for number in range(NUM_REQUESTS):
            prompt = [(number * 7 + place * place) % 256 for place in range(3 + number % 20)]
            engine.submit(prompt, WAYS[number % len(WAYS)])
            if number % 11 == 0:
                engine.abort(number)
            while engine.stats().waiting:
                engine.step()
            if number == WARM:
                level = resident_bytes()
        while engine.has_work:
            engine.step()
        stats = engine.stats()
        assert stats.requests == NUM_REQUESTS
        assert stats.free_pages == stats.num_pages
        assert abs(resident_bytes() / level - 1) < 0.02
        assert not engine._requests
        assert not engine._scheduler.running
