# Everything runs in an environment of its own, .venv; `make clean` removes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: help demo test check docs pictures clean

help:
	@echo "make demo   generate 30 s of video with TetherCache and with FIFO, and compare them"
	@echo "make test   run the tests"
	@echo "make check  ruff, mypy and the documentation, all strict"
	@echo "make docs   build the documentation into site/"
	@echo "make pictures   draw the policies' pictures in docs/ anew"

demo: $(VENV)/.core
	$(BIN)/tetherflow demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

pictures: $(VENV)/.test
	$(BIN)/python docs/policy_pictures.py

clean:
	rm -rf $(VENV) site

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tetherflow needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp says what is installed; it is older than what it depends on when that has changed.
$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) -e '.[test,wan]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e '.[test,wan,docs,dev]'
	@touch $@
