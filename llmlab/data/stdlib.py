"""The Python standard library as a corpus: real text that lies on every machine.

Source files make documents (the built-in source `stdlib`); docstrings make a corpus of questions
and answers. Tests, demos, code tables, generated files and installed packages are left out.
Nothing is written.
"""

import ast
import functools
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmlab.errors import DataError

_SKIPPED_FOLDERS = (
    "__phello__",
    "__pycache__",
    "config-",
    "dist-packages",
    "encodings",
    "idlelib",
    "lib-dynload",
    "pydoc_data",
    "site-packages",
    "test",
    "turtledemo",
)
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")


@dataclass(frozen=True, slots=True)
class Docstring:
    """One documented module, class, function or method."""

    module: str
    """Dotted name of the module, such as `shutil`."""

    name: str
    """Dotted name of the thing, such as `shutil.copy`."""

    signature: str
    """How it is declared, such as `def shutil.copy(src, dst, *, follow_symlinks=True)`."""

    text: str
    """The docstring with its indentation removed."""


def stdlib_files() -> list[Path]:
    """Return the source files, sorted by their path inside the library.

    Raises:
        DataError: this Python has no library sources on disk (some embedded builds).
    """
    root = stdlib_root()
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(_SKIPPED_FOLDERS)]
        wanted = (name for name in names if not name.startswith(_SKIPPED_FILES))
        files += (Path(folder, name) for name in wanted if name.endswith(".py"))
    if not files:
        raise DataError(
            f"the standard library at {root} holds no .py files; "
            "use a Python that ships its sources, or another source"
        )
    return sorted(files, key=lambda path: path.relative_to(root).parts)


def stdlib_root() -> Path:
    """Return the folder of the standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_source(path: Path) -> str:
    """Read a Python file in the encoding it declares (PEP 263)."""
    with tokenize.open(path) as file:
        return file.read()


@functools.cache
def stdlib_docstrings() -> tuple[Docstring, ...]:
    """Return the docstrings of all public modules, classes, functions and methods.

    The order is that of the files, and inside a file that of the source. They are read once a
    process.
    """
    return tuple(_docstrings())


def _docstrings() -> Iterator[Docstring]:
    root = stdlib_root()
    for path in stdlib_files():
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if any(part.startswith("_") for part in parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in strings are not our concern
            tree = ast.parse(read_source(path))
        module = ".".join(parts)
        if text := ast.get_docstring(tree):
            yield Docstring(module, module, f"module {module}", text)
        yield from _inside(tree, module, module)


def _inside(scope: ast.Module | ast.ClassDef, module: str, prefix: str) -> Iterator[Docstring]:
    for node in scope.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        if text := ast.get_docstring(node):
            yield Docstring(module, name, _signature(node, name), text)
        if isinstance(node, ast.ClassDef):
            yield from _inside(node, module, name)


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    if isinstance(node, ast.FunctionDef):
        return f"def {name}({ast.unparse(node.args)})"
    if isinstance(node, ast.AsyncFunctionDef):
        return f"async def {name}({ast.unparse(node.args)})"
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return f"class {name}({ast.unparse(_without_self(child.args))})"
    return f"class {name}"


def _without_self(args: ast.arguments) -> ast.arguments:
    positional = args.posonlyargs or args.args
    del positional[:1]
    return args
