"""The GGUF reader: files written by the `gguf` package, and damaged ones."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from llmlab.errors import ModelError
from llmlab.model.gguf import GgufFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file with one of everything."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.u32", 7)
    writer.add_int64("a.i64", -7)
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "grüße 🙂")
    writer.add_array("a.words", ["one", "", "drei"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.flags", [True, False])
    rng = np.random.default_rng(0)
    writer.add_tensor("matrix", rng.normal(size=(3, 64)).astype(np.float32))
    writer.add_tensor("halves", rng.normal(size=(5,)).astype(np.float16))
    packed = gguf.quantize(
        rng.normal(size=(4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_tensors_equal_the_gguf_packages(path: Path) -> None:
    file, reference = GgufFile(path), gguf.GGUFReader(path)
    assert file.version == 3
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["a.u32"] == 7
    assert file.metadata["a.i64"] == -7
    assert file.metadata["a.f32"] == 0.5
    assert file.metadata["a.yes"] is True
    assert file.metadata["a.text"] == "grüße 🙂"
    assert file.metadata["a.words"] == ["one", "", "drei"]
    assert file.metadata["a.numbers"].tolist() == [1, 2, 3]
    assert file.metadata["a.flags"].tolist() == [True, False]
    assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.array(tensor.name), expected)


def test_every_cut_is_an_error_and_never_a_crash(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    last = max(info.start + info.num_bytes for info in GgufFile(path).tensors.values())
    for length in [*range(0, 900, 7), last - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut off|not a GGUF"):
            GgufFile(cut)


def test_flipped_bytes_give_a_model_error_or_a_file(path: Path, tmp_path: Path) -> None:
    """A damaged header never allocates or crashes: it is a ModelError, or still a valid file."""
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    damaged_path = tmp_path / "damaged.gguf"
    errors = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(4, 900))] = int(rng.integers(0, 256))
        damaged_path.write_bytes(damaged)
        try:
            GgufFile(damaged_path)
        except ModelError:
            errors += 1
    assert errors > 30


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "does not start with `GGUF`"),
        (b"PK\x03\x04", "does not start with `GGUF`"),
        (b"GGUF" + struct.pack("<I", 1), "version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), f"announces {1 << 60} tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), f"announces {1 << 60} pairs"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50) + b"x" * 8, "bytes of a metadata key"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99),
            "unknown value type 99",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 62),
            "items of k",
        ),
    ],
)
def test_hostile_headers_name_the_value(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(header)
    with pytest.raises(ModelError, match=message):
        GgufFile(path)


def test_an_unread_tensor_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "iq4.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType.IQ4_NL
    writer.add_tensor("w", np.zeros((2, 18), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"'w' is stored as IQ4_NL.*Q4_K"):
        GgufFile(path)


def test_a_missing_file_and_a_missing_tensor_are_named(path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.gguf is not a file"):
        GgufFile("nowhere.gguf")
    with pytest.raises(ModelError, match="no tensor 'lost'; it has 3"):
        GgufFile(path).array("lost")
