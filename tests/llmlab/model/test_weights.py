"""Weights in one file and in several: what transformers writes and reads, and memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llmlab.errors import ModelError, OutputError
from llmlab.model import load_model, save_model
from llmlab.model.safetensors_files import write_tensors
from llmlab.model.weights import stored_dtype
from tests.full_disk import files_no_larger_than
from tests.tiny import tiny_model, tiny_tokenizer

# Two float32 implementations of the same sums in another order, logits of size about 5.
FLOAT32_TOLERANCE = {"atol": 1e-4, "rtol": 0}


def some_ids() -> torch.Tensor:
    return torch.randint(0, 380, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2", "gpt2"])
def test_transformers_reads_several_files_and_we_read_its(architecture: str, tmp_path: Path):
    model = tiny_model(architecture)
    save_model(model, tiny_tokenizer(), tmp_path / "ours", max_shard_bytes=60_000)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 3
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(some_ids())
        torch.testing.assert_close(stock(some_ids()).logits, expected, **FLOAT32_TOLERANCE)
    stock.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert len(list((tmp_path / "theirs").glob("model-*-of-*.safetensors"))) > 3
    tiny_tokenizer().save(tmp_path / "theirs")
    back, _ = load_model(tmp_path / "theirs")
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


def test_no_file_is_larger_than_the_limit(tmp_path: Path):
    save_model(tiny_model(), tiny_tokenizer(), tmp_path / "model", max_shard_bytes=60_000)
    for path in (tmp_path / "model").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
            assert file.metadata() == {"format": "pt"}
        assert sum(sizes) <= 60_000 or len(sizes) == 1


def test_numbers_of_several_dtypes_and_shapes_are_read_by_safetensors(tmp_path: Path):
    """In the file a tensor starts where numbers of its width may start."""
    weights = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "wide": torch.arange(4.0).reshape(2, 2),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.empty(0, 4),
        "one": torch.tensor(2.5, dtype=torch.float16),
    }
    write_tensors(tmp_path / "x.safetensors", weights)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(weights)
        for name, weight in weights.items():
            got = file.get_tensor(name)
            assert got.dtype == weight.dtype
            assert torch.equal(got, weight)
            assert got.data_ptr() % weight.element_size() == 0


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"is no index of tensors"),
        ("{}", r"is no index of tensors \(KeyError"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "which is not beside it"),
        ('{"weight_map": {"a": "lost.safetensors"}}', r"lost\.safetensors is missing though"),
    ],
)
def test_an_index_that_leads_nowhere(index: str, message: str, tmp_path: Path):
    save_model(tiny_model(), tiny_tokenizer(), tmp_path / "model", max_shard_bytes=60_000)
    (tmp_path / "model" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "model")


def test_a_missing_file_of_several(tmp_path: Path):
    save_model(tiny_model(), tiny_tokenizer(), tmp_path / "model", max_shard_bytes=60_000)
    next((tmp_path / "model").glob("model-00002-*")).unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-\d+\.safetensors is missing though"):
        load_model(tmp_path / "model")


def test_a_full_disk_leaves_no_folder(tmp_path: Path):
    with pytest.raises(OutputError, match=r"cannot write .*model.*free some space"):
        with files_no_larger_than(100_000):
            save_model(tiny_model(), tiny_tokenizer(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_dtype_of_a_folder(tmp_path: Path):
    write_tensors(tmp_path / "model.safetensors", {"a": torch.ones(2).half(), "b": torch.ones(2)})
    assert stored_dtype(tmp_path) == torch.float32
    write_tensors(tmp_path / "model.safetensors", {"a": torch.ones(2).bfloat16()})
    assert stored_dtype(tmp_path) == torch.bfloat16


MEASURE = """
import json, re, sys
from pathlib import Path

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

import torch
from llmlab.export import ExportGgufConfig, export_gguf
from llmlab.model import load_model, load_weights
from llmlab.model.safetensors_files import stored_tensors

def load(folder, dtype):
    model, _ = load_model(folder, dtype=dtype)
    return float(sum(parameter.sum() for parameter in model.parameters()))  # every page is read

folder, job, small = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
out = folder.with_name("measured.gguf")
jobs = {
    "load": lambda folder: load(folder, "float32"),
    "narrow": lambda folder: load(folder, "bfloat16"),
    "export": lambda folder: export_gguf(
        ExportGgufConfig(model=folder, out=out, type="q8_0", overwrite=True)
    ),
}
jobs[job](small)  # what is imported and allocated once does not count
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
jobs[job](folder)
print(json.dumps(status("VmHWM") - before))
"""


def measured(folder: Path, job: str, small: Path) -> int:
    """Peak of resident bytes in a process of its own, above what it had before."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), job, str(small)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of 1.1 GB in one file and in several, and a small one."""
    place = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 17}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    model = tiny_model(**sizes, **heads)
    save_model(model, tiny_tokenizer(), place / "one")
    save_model(model, tiny_tokenizer(), place / "several", max_shard_bytes=300_000_000)
    save_model(tiny_model(), tiny_tokenizer(), place / "small")
    return place, 4 * model.config.num_parameters


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
@pytest.mark.parametrize("folder", ["one", "several"])
def test_memory_stays_near_the_weights(folder: str, large: tuple[Path, int]):
    """1.1 GB: loaded once and no more, converted tensor by tensor; an export holds one tensor."""
    place, num_bytes = large
    assert measured(place / folder, "load", place / "small") <= 1.2 * num_bytes
    assert measured(place / folder, "narrow", place / "small") <= 1.2 * num_bytes / 2 + 64e6
    assert measured(place / folder, "export", place / "small") <= 160e6
