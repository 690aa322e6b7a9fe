"""Self-contained pages: one look, tables and charts for every report. No script, no other file."""

from llmlab.page.charts import Chart, Line, dot_chart, line_chart
from llmlab.page.layout import render
from llmlab.page.table import Table, escape_markdown

__all__ = ["Chart", "Line", "Table", "dot_chart", "escape_markdown", "line_chart", "render"]
