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
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

_logger = logging.getLogger(__name__)
_SOURCES = Path(__file__).parent / "cpp"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=fast")
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "f": ctypes.c_float}


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
def native_function(name: str, dtype: torch.dtype, arguments: str) -> Callable[..., None] | None:
    """Return a compiled function; None without one, or for another dtype than it is made for.

    Args:
        name: without the suffix for the dtype.
        dtype: of activations: float32 or bfloat16.
        arguments: a letter each: `p` a pointer, `i` an int, `f` a float.
    """
    library = _library() if dtype in (torch.float32, torch.bfloat16) else None
    if library is None:
        return None
    function = getattr(library, f"{name}_{str(dtype).removeprefix('torch.')}")
    function.argtypes = [_TYPES[letter] for letter in arguments]
    function.restype = None
    return function


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
