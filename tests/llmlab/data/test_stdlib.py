import ast
import inspect
import shutil
import textwrap

from llmlab.data import iter_documents, stdlib_docstrings


def test_the_standard_library_is_a_corpus_of_some_megabytes():
    documents = list(iter_documents(["stdlib"]))
    names = [document.source for document in documents]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert "stdlib/shutil.py" in names
    assert not [name for name in names if "/test" in name or "site-packages" in name]
    assert 5e6 < sum(len(document.text) for document in documents) < 3e7


def test_docstrings_are_those_that_inspect_finds():
    found = {docstring.name: docstring for docstring in stdlib_docstrings()}
    assert len(found) > 3000
    modules = list(dict.fromkeys(docstring.module.split(".")[0] for docstring in found.values()))
    assert modules == sorted(modules)  # the order is that of the files
    copy = found["shutil.copy"]
    assert copy.module == "shutil"
    assert copy.signature == "def shutil.copy(src, dst, *, follow_symlinks=True)"
    assert copy.text == inspect.getdoc(shutil.copy)
    assert found["shutil"].signature == "module shutil"
    assert found["textwrap.TextWrapper"].text == inspect.getdoc(textwrap.TextWrapper)
    assert found["textwrap.TextWrapper"].signature.startswith("class textwrap.TextWrapper(width=70")
    assert found["ast.NodeVisitor.visit"].signature == "def ast.NodeVisitor.visit(self, node)"
    assert inspect.getdoc(ast.NodeVisitor.visit) == found["ast.NodeVisitor.visit"].text
