# make setup | demo | test | lint | bench: each creates .venv first when it is missing or outdated.
#
#   PYTHON=python3.12        the Python that .venv is made with (3.11, 3.12 or 3.13)
#   PIP_ARGS='...'           arguments for every pip install, such as an index of your own
#   DATASET=FILE.jsonl       questions for `make bench`, in Spec-Bench format
#   BENCH_ARGS='...'         more arguments for benchmarks/serving.py

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13,$(shell command -v $(name))))
PIP_ARGS ?=
DATASET ?=
BENCH_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Errors only: pip also warns, a line per package, about every index that lacks it.
QUIET := -qq --progress-bar off
TORCH := $(shell grep '^torch==' requirements/cpu.txt)

.PHONY: setup demo test lint rivals prepare search bench lock
.DELETE_ON_ERROR:

setup: .venv/installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
	  echo "setup: no python3.11, python3.12 or python3.13 found; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# torch comes first, so that an index without its CPU build is told of before all else is fetched.
# --no-deps: the lock is complete, and says at its top why nothing may be added to it.
.venv/installed: requirements/cpu.txt requirements/vllm-name/pyproject.toml pyproject.toml | $(BIN)/python
	@echo "setup: installing requirements/cpu.txt into .venv, which takes a few minutes at first"
	@rm -f .venv/pip.log
	@$(PIP) install $(QUIET) --log .venv/pip.log --no-deps $(PIP_ARGS) '$(TORCH)' || { \
	  if grep -q 'No matching distribution found for torch==' .venv/pip.log; then \
	    echo "setup: the configured package index does not offer $(TORCH), the CPU build of torch." \
	      "Pass one that does: make setup PIP_ARGS='--extra-index-url URL-OF-THE-PYTORCH-CPU-INDEX'" >&2; \
	  fi; exit 1; }
	@$(PIP) install $(QUIET) --no-deps $(PIP_ARGS) -r requirements/cpu.txt
	@$(PIP) install $(QUIET) --no-deps --no-build-isolation $(PIP_ARGS) ./requirements/vllm-name
	@$(PIP) install $(QUIET) --no-deps --no-build-isolation $(PIP_ARGS) --editable .
	@touch $@

# arctic-inference (vLLM's suffix decoding) has no wheel: CMake must find .venv's Python first.
.venv/bench-installed: requirements/bench.txt requirements/bench-build.txt .venv/installed
	$(PIP) install $(QUIET) --no-deps $(PIP_ARGS) -r requirements/bench-build.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" \
	  $(PIP) install $(QUIET) --no-deps --no-build-isolation $(PIP_ARGS) -r requirements/bench.txt
	@touch $@

demo: setup
	$(BIN)/specproof demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes, a file each at a time, in the order of the folders: the engine's files, which take
# longest, come first. Before that, side by side: what both would make, and the checks of the code.
test: setup
	@$(MAKE) --no-print-directory -j 2 prepare lint rivals
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The one optional package is tested where it can be built.
rivals: setup
	@$(MAKE) --no-print-directory .venv/bench-installed || \
	  echo "test: arctic-inference cannot be built here: tests of suffix decoding are skipped" >&2

prepare: setup
	$(BIN)/python -m tests.prepare

# Properties on examples that no run has seen: they may find what nobody has thought of.
search: setup
	$(BIN)/python -m pytest -n 2 -m "not slow" --hypothesis-profile search tests/theory tests/proposers

bench: .venv/bench-installed
	@test -n "$(DATASET)" || { \
	  echo "bench: name the questions: make bench DATASET=FILE.jsonl (Spec-Bench format)" >&2; exit 2; }
	$(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/serving.py --dataset "$(DATASET)" \
	  --methods none,ngram,suffix,stand --json out/serving.json $(BENCH_ARGS)

# For maintainers: resolve requirements/cpu.in again. UV_ARGS says where the CPU build of torch is.
lock: setup
	$(PIP) install $(QUIET) $(PIP_ARGS) uv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python requirements/lock.py $(UV_ARGS)
