"""llama.cpp as `xllamacpp` carries it, asked for ids through its C interface.

It runs in a process of its own, which writes JSON to stdout: an assertion inside llama.cpp ends the
process, and that shall fail one test. Only the vocabulary of a file is loaded.
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# `llama_model_params` is passed by value: its size may grow, its flags begin at this byte.
_PARAMS_BYTES, _VOCAB_ONLY = 512, 72


class _Params(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint8 * _PARAMS_BYTES)]


def llama_cpp_ids(
    file: Path, texts: Sequence[str], *, parse_special: bool = False, add_special: bool = False
) -> tuple[list[list[int]], dict[str, Any]]:
    """Return llama.cpp's ids of each text, and the facts it read; skip the test without it."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed; run `pip install xllamacpp`")
    flags = [add_special, parse_special]
    request = json.dumps({"file": str(file), "texts": list(texts), "flags": flags})
    answer = subprocess.run(
        [sys.executable, __file__], input=request, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    told = json.loads(answer.stdout)
    return told["ids"], told["facts"]


def _main() -> None:
    request = json.loads(sys.stdin.read())
    library, vocab = _load(request["file"])
    ids = [_tokenize(library, vocab, text, *request["flags"]) for text in request["texts"]]
    facts = {
        "num_tokens": library.llama_vocab_n_tokens(vocab),
        "bos": library.llama_vocab_bos(vocab),
        "eos": library.llama_vocab_eos(vocab),
        "eot": library.llama_vocab_eot(vocab),
        "pad": library.llama_vocab_pad(vocab),
        "adds_bos": library.llama_vocab_get_add_bos(vocab),
    }
    sys.stdout.write(json.dumps({"ids": ids, "facts": facts}))


def _load(file: str) -> tuple[Any, ctypes.c_void_p]:
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    assert spec is not None
    library = ctypes.CDLL(spec.origin)
    library.llama_model_default_params.restype = _Params
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Params]
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    library.llama_model_get_vocab.restype = ctypes.c_void_p
    library.llama_vocab_get_add_bos.restype = ctypes.c_bool
    library.llama_backend_init()
    params = library.llama_model_default_params()
    params.data[_VOCAB_ONLY] = 1
    model = library.llama_model_load_from_file(file.encode(), params)
    assert model, f"llama.cpp does not load {file}"
    return library, ctypes.c_void_p(library.llama_model_get_vocab(model))


def _tokenize(
    library: Any, vocab: ctypes.c_void_p, text: str, add_special: bool, parse_special: bool
) -> list[int]:
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    flags = ctypes.c_bool(add_special), ctypes.c_bool(parse_special)
    count = library.llama_tokenize(vocab, data, len(data), ids, len(ids), *flags)
    return ids[:count]


if __name__ == "__main__":
    _main()
