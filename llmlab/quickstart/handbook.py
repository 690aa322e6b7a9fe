"""A handbook to retrieve from: the documentation strings of well-known modules as markdown files.

Reads the standard library; writes one file a module.
"""

from collections import defaultdict
from pathlib import Path

from llmlab.data import Docstring, stdlib_docstrings
from llmlab.outputs import whole_folder

MODULES = {
    "argparse",
    "bisect",
    "calendar",
    "collections",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "difflib",
    "enum",
    "fileinput",
    "fnmatch",
    "fractions",
    "functools",
    "getpass",
    "glob",
    "gzip",
    "heapq",
    "json.decoder",
    "json.encoder",
    "json",
    "logging",
    "pathlib",
    "pprint",
    "queue",
    "random",
    "re",
    "sched",
    "secrets",
    "shelve",
    "shlex",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "traceback",
    "urllib.parse",
    "uuid",
    "webbrowser",
    "zipfile",
}
"""Modules written in Python that people ask about."""


def write_handbook(folder: Path) -> int:
    """Write `folder/MODULE.md` for each of MODULES and return the number of entries."""
    pages: dict[str, list[Docstring]] = defaultdict(list)
    for entry in stdlib_docstrings():
        if entry.module in MODULES:
            pages[entry.module].append(entry)
    with whole_folder(folder) as partial:
        for module, entries in pages.items():
            text = f"# {module}\n\n" + "\n".join(_section(entry) for entry in entries)
            (partial / f"{module}.md").write_text(text, encoding="utf-8")
    return sum(len(entries) for entries in pages.values())


def _section(entry: Docstring) -> str:
    return f"## {entry.name}\n\n`{entry.signature}`\n\n{entry.text.strip()}\n"
