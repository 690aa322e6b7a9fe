import logging

import pytest

from llmlab.errors import DataError, RetrievalError
from llmlab.rag import Document, load_file
from llmlab.rag.load import document_files
from tests.rag.corpus import PDF_PAGES


def test_a_folder_is_walked_in_order_without_hidden_and_unknown_files(corpus):
    names = [path.relative_to(corpus).as_posix() for path in document_files(corpus)]
    assert names == ["bridge.txt", "code.py", "page.html", "paper.pdf", "guide/bees.md"]


@pytest.mark.parametrize("name", ["bridge.txt", "code.py", "guide/bees.md"])
def test_text_files_keep_their_text(corpus, name):
    path = corpus / name
    assert load_file(path).text == path.read_text(encoding="utf-8")


def test_offsets_hold_for_read_text_where_lines_end_as_on_windows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n")
    assert load_file(path).text == path.read_text(encoding="utf-8") == "one\ntwo\n"


def test_html_becomes_headings_and_paragraphs(corpus):
    document = load_file(corpus / "page.html")
    assert document.title == "Tea & water"
    assert document.text == (
        "# Brewing\n\nGreen tea is brewed at 75 degrees for two minutes.\n\n## Black\n\n"
        "Black tea needs boiling water.\n\n```\na\n  b\n```"
    )


def test_markdown_title_is_its_first_heading(corpus):
    assert load_file(corpus / "guide/bees.md").title == "Bees"


def test_pdf_pages_are_known_by_offset(corpus):
    document = load_file(corpus / "paper.pdf")
    assert document.text == "\n\n".join(PDF_PAGES)
    assert document.page(0) == 1
    assert document.page(document.text.index("Corvin")) == 2
    assert load_file(corpus / "bridge.txt").page(0) is None


def test_bytes_that_are_not_utf8_are_replaced_and_reported(tmp_path, caplog):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"Z\xfcrich")
    with caplog.at_level(logging.WARNING):
        assert load_file(path).text == "Z\ufffdrich"
    assert "byte 1" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"", r"unknown suffix '\.xyz'; known: .*\.md"),
        ("a.pdf", b"not a pdf", "cannot read .*a.pdf as PDF: .*re-export"),
        ("missing.txt", None, "cannot read .*missing.txt: No such file.*check the path"),
    ],
)
def test_unreadable_files_name_the_file_and_the_fix(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_file(path)


def test_a_file_is_no_folder(corpus):
    with pytest.raises(DataError, match=r"bridge\.txt is not a folder"):
        list(document_files(corpus / "bridge.txt"))


def test_lone_surrogates_are_refused_with_their_place():
    with pytest.raises(RetrievalError, match=r"'d' has a lone surrogate at offset 2.*replace"):
        Document("d", "ab\ud800")
