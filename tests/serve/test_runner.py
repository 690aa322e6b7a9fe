"""The runner alone: a step of mixed slices equals the model run sequence by sequence."""

from copy import deepcopy

import pytest
import torch

from llmlab.serve.params import SamplingParams
from llmlab.serve.runner import Runner
from llmlab.serve.sequence import Sequence, Slice
from tests.tiny import tiny_model, tiny_tokenizer

PAGE_LEN = 4


def sequence(number: int, length: int, pages: list[int]) -> Sequence:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, 250, (length,), generator=generator).tolist()
    params = SamplingParams(temperature=0, logprobs=2)
    return Sequence(
        number=number,
        prompt_len=length,
        token_ids=ids,
        params=params,
        max_len=128,
        seed=0,
        pages=pages,
    )


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2", "gpt2"])
def test_a_mixed_step_equals_each_sequence_alone(architecture):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    runner = Runner(deepcopy(model), tokenizer, num_pages=40, page_len=PAGE_LEN)
    # A decode after a chunk of 12, a chunk with context, a whole prompt, a prompt's first part,
    # and a decode at the start of a page; pages out of order.
    seqs = [
        sequence(0, 13, [9, 2, 30, 4]),
        sequence(1, 11, [5, 6, 7]),
        sequence(2, 6, [1, 0]),
        sequence(3, 9, [20, 11, 12]),
        sequence(4, 17, [39, 38, 13, 14, 15]),
    ]
    first = [Slice(seqs[0], 0, 12), Slice(seqs[1], 0, 3), Slice(seqs[4], 0, 16)]
    assert [result.token_ids for result in runner.run(first)] == [()] * 3
    step = [
        Slice(seqs[3], 0, 5),
        Slice(seqs[0], 12, 13),
        Slice(seqs[1], 3, 11),
        Slice(seqs[2], 0, 6),
        Slice(seqs[4], 16, 17),
    ]
    results = runner.run(step)
    assert results[0].token_ids == ()
    for part, result in list(zip(step, results, strict=True))[1:]:
        with torch.inference_mode():
            logits = model(torch.tensor([part.seq.token_ids]))[0, -1]
        expected = int(logits[: tokenizer.vocab_size].argmax())
        assert result.token_ids == (expected,)
        # float32, three layers: the same sums in another order.
        assert abs(result.logprobs[0].logprob - logits.log_softmax(-1)[expected]) < 1e-4


def test_a_vocabulary_wider_than_the_tokenizer_never_yields_a_nameless_token():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=tokenizer.vocab_size + 3000)
    runner = Runner(deepcopy(model), tokenizer, num_pages=4, page_len=PAGE_LEN)
    seq = sequence(0, 5, [0, 1])
    (result,) = runner.run([Slice(seq, 0, 5)])
    with torch.inference_mode():
        logprobs = model(torch.tensor([seq.token_ids]))[0, -1].log_softmax(-1)
    assert logprobs.argmax() >= tokenizer.vocab_size, "the case this test is about"
    best = logprobs[: tokenizer.vocab_size].topk(2)
    assert result.token_ids == (best.indices[0],)
    assert [entry.token_id for entry in result.logprobs[0].top] == best.indices.tolist()
    # The nameless ids keep their share: float32 sums in another order.
    assert abs(result.logprobs[0].logprob - best.values[0]) < 1e-4


def test_copied_pages_are_the_same_to_attention():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    runner = Runner(model, tokenizer, num_pages=12, page_len=PAGE_LEN)
    seq = sequence(0, 10, [3, 7, 5])
    runner.run([Slice(seq, 0, 9)])
    (expected,) = runner.run([Slice(seq, 9, 10)])
    # A page may be the source of one pair and the target of another: all are read first.
    runner.copy_pages([(3, 0), (7, 3), (5, 11)])
    seq.pages = [0, 3, 11]
    assert runner.run([Slice(seq, 9, 10)]) == [expected]
