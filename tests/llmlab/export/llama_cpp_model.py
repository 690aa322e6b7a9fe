"""llama.cpp as `xllamacpp` carries it, asked for logits through its C interface.

It runs in a process of its own, which answers with a file: an assertion inside llama.cpp ends the
process, and that shall fail one test. Keys and values are cached in float32 and flash attention is
off, so that the logits are as exact as the weights.
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Structures that are passed by value: they may grow, their fields begin at these bytes.
_PARAMS_BYTES = 512
_N_CTX, _N_BATCH, _THREADS, _FLASH_ATTENTION, _KV_TYPES = 0, 4, (28, 32), 52, (104, 108)
_F16, _F32 = 1, 0

HAS_LLAMA_CPP = importlib.util.find_spec("xllamacpp") is not None


class _Params(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint8 * _PARAMS_BYTES)]

    def read(self, at: int) -> int:
        return ctypes.c_int32.from_buffer(self.data, at).value

    def write(self, at: int, value: int) -> None:
        ctypes.c_int32.from_buffer(self.data, at).value = value


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def llama_cpp(file: Path, ids: list[int], num_new: int = 0) -> tuple[np.ndarray, list[int]]:
    """Return the logits after each id, float32 (T, V), and the ids that follow greedily."""
    answer = file.with_suffix(".npz")
    request = {"file": str(file), "ids": ids, "num_new": num_new, "answer": str(answer)}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(request)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = np.load(answer)
    return told["logits"], told["new"].tolist()


def _main() -> None:
    request = json.loads(sys.argv[1])
    library = _library()
    model = library.llama_model_load_from_file(
        request["file"].encode(), library.llama_model_default_params()
    )
    assert model, f"llama.cpp does not load {request['file']}"
    ids, num_new = request["ids"], request["num_new"]
    vocab = library.llama_model_get_vocab(model)
    run = _Run(library, model, library.llama_vocab_n_tokens(vocab), len(ids) + num_new)
    logits, new = run.decode(ids), []
    last = logits[-1]
    for _ in range(num_new):
        new.append(int(last.argmax()))
        last = run.decode(new[-1:])[0]
    np.savez(request["answer"], logits=logits, new=np.array(new, np.int64))


class _Run:
    """One sequence."""

    def __init__(self, library: Any, model: int, vocab_size: int, max_len: int) -> None:
        self._library, self._vocab_size, self._max_len = library, vocab_size, max_len
        params = library.llama_context_default_params()
        assert [params.read(at) for at in _KV_TYPES] == [_F16, _F16], "another llama.cpp"
        settings = {_N_CTX: max_len, _N_BATCH: max_len, _FLASH_ATTENTION: 0}
        settings |= dict.fromkeys(_THREADS, 1) | dict.fromkeys(_KV_TYPES, _F32)
        for at, value in settings.items():
            params.write(at, value)
        self._context = library.llama_init_from_model(model, params)
        assert self._context, "llama.cpp makes no context"
        self._len = 0

    def decode(self, ids: list[int]) -> np.ndarray:
        """Take ids into the sequence and return the logits after each, (T, V)."""
        batch = self._library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at] = token, self._len + at
            batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, 0, 1
        assert self._library.llama_decode(self._context, batch) == 0
        self._len += len(ids)
        rows = [self._library.llama_get_logits_ith(self._context, at) for at in range(len(ids))]
        logits = [np.ctypeslib.as_array(row, (self._vocab_size,)).copy() for row in rows]
        self._library.llama_batch_free(batch)
        return np.stack(logits)


def _library() -> Any:
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    assert spec is not None
    library = ctypes.CDLL(spec.origin)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_model_default_params": (_Params, []),
        "llama_context_default_params": (_Params, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Params]),
        "llama_init_from_model": (pointer, [pointer, _Params]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_batch_init": (_Batch, [number, number, number]),
        "llama_batch_free": (None, [_Batch]),
        "llama_decode": (number, [pointer, _Batch]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_backend_init()
    return library


if __name__ == "__main__":
    _main()
