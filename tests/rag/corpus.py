"""A small corpus for tests: five files of five formats, and a PDF writer of a few lines."""

from pathlib import Path

TEXTS = {
    "bridge.txt": (
        "The Miravel bridge was opened in 1937. It spans the river Tolm between the towns of Ansk "
        "and Perrin.\n\nIts main span is 412 metres long. Two steel towers carry the cables, and "
        "the deck hangs 60 metres above the water."
    ),
    "guide/bees.md": (
        "# Bees\n\nHoney bees live in colonies of many thousands.\n\n## Dance\n\nA forager tells "
        "others where food is by a waggle dance. The angle of the dance gives the direction.\n\n"
        "```sh\n# not a heading\n```\n\n## Winter\n\n"
        "In winter the colony forms a cluster and eats stored honey.\n"
    ),
    "page.html": (
        "<html><head><title>Tea &amp; water</title><style>p {}</style></head><body><h1>Brewing</h1>"
        "<p>Green tea is brewed at <b>75 degrees</b>\n for two minutes.</p><h2>Black</h2><p>Black "
        "tea needs boiling water.</p><pre>a\n  b</pre><script>evil()</script></body></html>"
    ),
    "code.py": (
        '"""Doubles."""\n\n\ndef double(value):\n    """Return twice the value."""\n'
        "    return 2 * value\n\n\n@staticmethod\ndef halve(value):\n"
        '    """Return half of the value."""\n    return value / 2\n'
    ),
}

PDF_PAGES = ("Lighthouses warn ships of rocks.", "The Corvin lighthouse has a red lamp.")


def write_corpus(folder: Path) -> Path:
    """Write the corpus and return its folder."""
    for name, text in TEXTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "paper.pdf").write_bytes(pdf_bytes(PDF_PAGES))
    (folder / ".hidden.txt").write_text("secret")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def pdf_bytes(pages: tuple[str, ...]) -> bytes:
    """Return a PDF 1.4 file (ISO 32000) with one line of text a page."""
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(pages)))
    font = f"{3 + 2 * len(pages)} 0 R"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
    ]
    for n, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * n} 0 R "
            f"/Resources << /Font << /F1 {font} >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    return (
        out
        + (
            f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
            f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
        ).encode()
    )
