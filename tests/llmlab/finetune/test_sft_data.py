import gzip
import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import DataError
from llmlab.finetune.sft_data import (
    Example,
    ExampleBatches,
    pad_batch,
    read_chats,
    read_examples,
)
from llmlab.tokenizers import Tokenizer
from tests.llmlab.finetune.conftest import tiny_model


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_what_the_assistant_says_is_scored_and_its_end_of_turn(
    tokenizer: Tokenizer, tmp_path: Path
):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "say red"},
        {"role": "assistant", "content": "red it is"},
        {"role": "user", "content": "say blue"},
        {"role": "assistant", "content": "blue it is"},
    ]
    path = write(tmp_path / "chats.jsonl.gz", {"messages": messages})
    (example,) = read_examples(path, tokenizer, max_len=1000).train
    scored = [token for token, on in zip(example.ids, example.scored, strict=True) if on]
    assert tokenizer.decode(scored) == "red it is<|im_end|>blue it is<|im_end|>"
    whole = tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert list(example.ids) == whole


def test_prompt_and_completion_are_a_chat_of_two(tokenizer: Tokenizer, tmp_path: Path):
    path = write(
        tmp_path / "pairs.jsonl",
        {"prompt": "say red", "completion": "red"},
        "",
        {
            "messages": [
                {"role": "user", "content": "say red"},
                {"role": "assistant", "content": "red"},
            ]
        },
    )
    one, two = read_chats(path)
    assert one == two
    one, two = read_examples(path, tokenizer, max_len=100).train
    assert one == two


def test_labels_are_the_next_tokens_where_scored():
    short = Example((5, 6, 7), (False, False, True))
    long = Example((1, 2, 3, 4, 5), (False, True, False, True, True))
    input_ids, labels, _ = pad_batch([short, long], pad_id=9)
    assert input_ids.tolist() == [[5, 6, 9, 9], [1, 2, 3, 4]]
    assert labels.tolist() == [[-100, 7, -100, -100], [2, -100, 4, 5]]


def test_padding_changes_no_loss(tokenizer: Tokenizer, chat_file: Path):
    model = tiny_model("qwen3", tokenizer.vocab_size)
    examples = read_examples(chat_file, tokenizer, max_len=100).train[:8]
    alone = [model.loss_sum(*pad_batch([example], 0).arguments) for example in examples]
    total, count = model.loss_sum(*pad_batch(examples, 1).arguments)
    assert count == sum(int(one) for _, one in alone)
    # float32, other summation order
    torch.testing.assert_close(
        total, torch.stack([one for one, _ in alone]).sum(), rtol=1e-5, atol=0
    )


def example_list(num: int) -> list[Example]:
    return [Example(tuple([n] * (2 + n % 7)), tuple([True] * (2 + n % 7))) for n in range(num)]


@settings(max_examples=30)
@given(num=st.integers(1, 60), batch_size=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_example_comes_once_an_epoch(num: int, batch_size: int, seed: int):
    batches = ExampleBatches(example_list(num), batch_size=batch_size, pad_id=99, seed=seed)
    for _ in range(2):
        seen = [batches.next()[0][:, 0].tolist() for _ in range(batches.num_batches)]
        assert sorted(chain.from_iterable(seen)) == list(range(num))


def test_examples_of_one_length_share_a_batch():
    batches = ExampleBatches(example_list(70), batch_size=5, pad_id=99, seed=0)
    assert not any((batches.next()[0] == 99).any() for _ in range(batches.num_batches))


def test_resuming_is_exact_across_epochs():
    def new() -> ExampleBatches:
        return ExampleBatches(example_list(23), batch_size=4, pad_id=99, seed=1)

    first, second = new(), new()
    for _ in range(9):
        first.next()
    second.load_state_dict(first.state_dict())
    for _ in range(12):
        assert all(
            torch.equal(a, b)
            for a, b in zip(first.next().arguments, second.next().arguments, strict=True)
        )


def test_a_state_of_other_data_is_refused():
    saved = ExampleBatches(example_list(5), batch_size=2, pad_id=0, seed=0).state_dict()
    with pytest.raises(DataError, match="cannot resume: the saved examples_sha256 is"):
        ExampleBatches(example_list(6), batch_size=2, pad_id=0, seed=0).load_state_dict(saved)
    with pytest.raises(DataError, match="the saved seed is 0, this run has 1"):
        ExampleBatches(example_list(5), batch_size=2, pad_id=0, seed=1).load_state_dict(saved)


def test_held_out_examples_are_chosen_by_content(tokenizer: Tokenizer, tmp_path: Path):
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(60)]
    one = read_examples(
        write(tmp_path / "a.jsonl", *rows), tokenizer, max_len=100, val_fraction=0.3
    )
    two = read_examples(
        write(tmp_path / "b.jsonl", *reversed(rows)), tokenizer, max_len=100, val_fraction=0.3
    )
    assert 5 < len(one.val) < 35
    assert set(one.val) == set(two.val)
    assert not set(one.val) & set(one.train)


def test_long_examples_are_left_out_and_counted(tokenizer: Tokenizer, tmp_path: Path):
    rows = [{"prompt": "short", "completion": "x"}, {"prompt": "long " * 200, "completion": "x"}]
    path = write(tmp_path / "a.jsonl", *rows)
    found = read_examples(path, tokenizer, max_len=60)
    assert (len(found.train), found.num_too_long) == (1, 1)
    with pytest.raises(
        DataError, match=r"nothing to train on: 2 examples are longer than max_len=3"
    ):
        read_examples(path, tokenizer, max_len=3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, r"line 2 has \['answer', 'question'\]; it needs"),
        ({"prompt": "a"}, r"line 2 has \['prompt'\]; it needs 'messages', or"),
        ({"prompt": "a", "completion": 3}, r"line 2 has \['completion', 'prompt'\].*strings"),
        ("[1, 2]", r"line 2 has list"),
        ("{nope", r"line 2 is not JSON \(.*'\{nope'"),
        ({"messages": "hello"}, r"line 2: 'messages' must be a list .*found \"hello\""),
        ({"messages": [{"role": "user"}]}, r"line 2: 'messages' must be.*found \[\{\"role"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"line 2 has no message with the role"),
    ],
)
def test_malformed_lines_name_themselves(tmp_path: Path, row: object, message: str):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, row)
    with pytest.raises(DataError, match=message):
        list(read_chats(path))


def test_missing_empty_and_undecodable_files(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing.jsonl is not a file; pass a .jsonl file"):
        list(read_chats(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match=r"a.jsonl is empty"):
        list(read_chats(write(tmp_path / "a.jsonl", "", "")))
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xe9", "completion": "b"}')
    with pytest.raises(DataError, match=r"cannot read .*b.jsonl: .*must be UTF-8"):
        list(read_chats(tmp_path / "b.jsonl"))
