"""`python -m llmlab`."""

from llmlab.cli.main import entry

entry()
