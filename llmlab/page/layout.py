"""The layout that every page shares: page.html.jinja has the head, the style and the macros.

A report's own template begins with `{% extends "page.html.jinja" %}` and fills the block `body`;
`{% import "parts.html.jinja" as parts %}` brings its tables and charts.
"""

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined


def render(template: Path, **values: Any) -> str:
    """Return a page as HTML; everything in it is escaped but for charts.

    Args:
        template: the report's own template.
        values: what it shows; one that it names and that is not given is an error.
    """
    folders = [template.parent, Path(__file__).parent]
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
