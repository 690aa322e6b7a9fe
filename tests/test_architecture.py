"""The shape of the repository: what import-linter cannot say."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["llmlab", "llmlab.serve", "llmlab.rag", "llmlab.evals"]


@pytest.mark.parametrize("name", ["kernels", "serve", "rag", "evals"])
def test_the_four_folders_are_linked_into_llmlab(name):
    link = ROOT / "llmlab" / name
    assert link.is_symlink()
    assert link.readlink() == Path(f"../{name}")


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_sorted_and_resolve(name):
    package = importlib.import_module(name)
    assert package.__all__ == sorted(package.__all__)
    assert len(package.__all__) <= 12
    for public in package.__all__:
        assert getattr(package, public).__doc__, f"{name}.{public} has no docstring"


def test_importing_the_packages_does_not_import_torch():
    code = f"import sys, {', '.join(PACKAGES)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_top_level_imports_of_the_sibling_folders():
    for folder in ["llmlab", "kernels", "serve", "rag", "evals", "tests", "benchmarks"]:
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                words = line.split()
                if words[:1] in (["import"], ["from"]):
                    top = words[1].split(".")[0]
                    assert top not in {"kernels", "serve", "rag", "evals"}, f"{path}: {line}"


def test_the_wheel_holds_only_llmlab(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"llmlab"}
    for folder in ["kernels", "serve", "rag", "evals"]:
        assert f"llmlab/{folder}/__init__.py" in names
