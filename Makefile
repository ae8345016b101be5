# The commands README names. Each sets up what it needs on a fresh machine.
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo

.DEFAULT_GOAL := help
.PHONY: help demo test parity lint clean

help: ## this text
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[convert,test]'
	touch $@

lint: $(VENV)/ready ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint ## what CI runs: lint, types and the tests
	$(VENV)/bin/python -m pytest -m 'not parity'

parity: $(VENV)/ready ## the whole matrix against segment-anything in PyTorch (long)
	$(VENV)/bin/python -m pytest -m parity -s

clean: ## remove what the other targets made
	rm -rf $(VENV) $(DEMO_VENV) demo
