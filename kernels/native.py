"""The C++ of cpp/, compiled for the processor it runs on, once, and kept in a cache.

What a wheel can carry would have to run everywhere; here the compiler of the machine (`c++`, or
`CXX` in the environment) uses every instruction the processor has. It takes a few seconds and needs
no header of PyTorch. The compiled file lies in `XDG_CACHE_HOME/llmlab` (`~/.cache/llmlab`), under a
name made of sources, compiler and processor. Without a compiler everything works, in plain PyTorch.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)
_SOURCES = Path(__file__).parent / "cpp"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=fast")
_WORDS = str.maketrans("pif", "qqd")


class Recorder:
    """What a tape (tape.py) sees of the calls made while it is recorded."""

    def called(self, address: int, words: bytes) -> None:
        """Take note of a call: the address of the function and its words."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory that stays the tape's."""
        raise NotImplementedError


recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
"""Where calls are written down, if they are."""


class NativeFunction:
    """A function of the C++.

    Args:
        function: as the library has it.
        arguments: a letter each: `p` an address, `i` a whole number, `f` a real one.
    """

    def __init__(self, function: Any, arguments: str) -> None:
        self._function = function
        self._address = ctypes.cast(function, ctypes.c_void_p).value
        self._pack = struct.Struct(arguments.translate(_WORDS)).pack

    def __call__(self, *arguments: float) -> None:
        """Run it; every argument becomes a word of 8 bytes."""
        words = self._pack(*arguments)
        observer = recorder.get()
        if observer is not None:
            observer.called(self._address or 0, words)
        self._function(words)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a dense tensor on the CPU for results, whose numbers are not set."""
    observer = recorder.get()
    if observer is not None:
        return observer.empty(shape, dtype)
    return torch.empty(shape, dtype=dtype, device="cpu")


def address(x: Tensor | None) -> int:
    """Return where the numbers of a tensor lie; 0 for none."""
    return 0 if x is None else x.data_ptr()


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled file, made where that was not done; None where it cannot be made."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or platform.system() == "Windows":
        _logger.warning("no C++ compiler: some operators run much slower; install g++")
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        _logger.warning("some operators run much slower, C++ did not compile: %s", detail)
        return None


@functools.cache
def native_function(name: str, dtype: torch.dtype, arguments: str) -> NativeFunction | None:
    """Return a compiled function; None without one, or for another dtype than it is made for.

    Args:
        name: without the suffix for the dtype.
        dtype: of activations: float32 or bfloat16.
        arguments: a letter each, as `NativeFunction` takes them.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    return function_of(f"{name}_{str(dtype).removeprefix('torch.')}", arguments)


def function_of(name: str, arguments: str) -> NativeFunction | None:
    """Return a compiled function by its whole name; None where nothing is compiled."""
    library = _library()
    if library is None:
        return None
    function = library[name]
    function.argtypes = [ctypes.c_char_p]
    function.restype = None
    return NativeFunction(function, arguments)


def _compiled(compiler: str) -> Path:
    sources = sorted(_SOURCES.iterdir())
    target = _folder() / f"kernels-{_fingerprint(compiler, sources)}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    _logger.info("compiling C++ for this processor, once, into %s", target)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        try:
            _compile(compiler, sources, _openmp(), built)
        except subprocess.CalledProcessError:  # a compiler that brings no OpenMP
            _compile(compiler, sources, [], built)
        built.replace(target)  # whole, or not there
    return target


def _compile(compiler: str, sources: list[Path], openmp: list[str], out: Path) -> None:
    units = [str(path) for path in sources if path.suffix == ".cpp"]
    command = [compiler, *_FLAGS, *_processor(), *units, *openmp, "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "llmlab"


def _fingerprint(compiler: str, sources: list[Path]) -> str:
    found = hashlib.sha256()
    for path in sources:
        found.update(path.read_bytes())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text(encoding="utf-8").splitlines() if processor.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    found.update(repr((version, flags, _FLAGS, _processor(), _openmp())).encode())
    return found.hexdigest()[:16]


def _processor() -> list[str]:
    if platform.machine() in ("aarch64", "arm64"):
        return ["-mcpu=native"]
    return ["-march=native", "-mprefer-vector-width=512"]


def _openmp() -> list[str]:
    """Return what makes threads, PyTorch's own library where it brings one: two would fight."""
    libraries = (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")
    return ["-fopenmp", *map(str, libraries)]
