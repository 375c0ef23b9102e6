# One face for every task: `make help` lists them. Each target makes the environment it needs and is quick when run again.

PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
TPU_ARGS ?=
# `make bench TORCH= GENSIM= ENTMAX=` leaves these out.
TORCH ?= torch==2.13.0
GENSIM ?= gensim==4.4.0
ENTMAX ?= entmax==1.3
# `make test-newest` takes the first of these that runs, on the PATH or installed by pyenv.
NEWEST ?= python3.13 python3.12
# Flags of jax 0.11 and later that users may set, and what shows whether they may.
FLAGS = JAX_REMAT3=True JAX_CUSTOM_JVP3=True JAX_CUSTOM_VJP3=True
FLAGGED = tests/test_autodiff.py tests/test_transforms_matrix.py tests/test_linear_memory.py
SHORT = $(FLAGGED) tests/test_house.py -k "linear or softmax or entmax or autodiff or memory or house"

export PIP_DISABLE_PIP_VERSION_CHECK = 1

ENVIRONMENTS = .venv .venv-oldest .venv-newest .venv-bench .venv-tpu
IN_VENV = .venv/bin/python
PYTHON_NEWEST = .venv-newest/bin/python
# A file stays on one worker: its tests share what takes long to set up, and what JAX compiled.
PYTEST = -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: help demo test test-slow test-oldest test-newest test-newest-short lint format doctest docs bench bench-sparse bench-hierarchical tpu-compile clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/ready-examples  ## train the language model example (DEMO_ARGS="--steps 60" for a short one)
	@$(IN_VENV) examples/language_model.py $(DEMO_ARGS)

test: .venv/ready-test  ## the tests, in a quarter of an hour (PYTEST_ARGS="-k name" for a part)
	@$(IN_VENV) $(PYTEST) $(PYTEST_ARGS)

test-slow: .venv/ready-test  ## the other combinations of tests, and what takes minutes
	@$(IN_VENV) $(PYTEST) -m slow $(PYTEST_ARGS)

test-oldest: .venv-oldest/ready  ## what `make test` runs, on the oldest releases that pyproject.toml allows
	@.venv-oldest/bin/python $(PYTEST) $(PYTEST_ARGS)

test-newest:  ## the same on the newest releases and the newest Python found, and a part of it under jax's new flags
	@$(call in_newest,$(PYTHON_NEWEST) $(PYTEST) $(PYTEST_ARGS) && $(FLAGS) $(PYTHON_NEWEST) $(PYTEST) $(FLAGGED) $(PYTEST_ARGS))

test-newest-short:  ## derivatives of maps and linear losses, memory and the house alone, with and without those flags
	@$(call in_newest,$(PYTHON_NEWEST) $(PYTEST) $(SHORT) $(PYTEST_ARGS) && $(FLAGS) $(PYTHON_NEWEST) $(PYTEST) $(SHORT) $(PYTEST_ARGS))

lint: .venv/ready-test .venv/ready-lint  ## style, docstrings and types
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m ruff format --check .
	@$(IN_VENV) -m basedpyright

format: .venv/ready-lint  ## put the sources into the form that lint asks for
	@$(IN_VENV) -m ruff check --fix .
	@$(IN_VENV) -m ruff format .

doctest: .venv/ready-test  ## the examples in docstrings, README.md and docs/
	@$(IN_VENV) -m pytest --doctest-modules jsoftmax tests/test_markdown.py $(PYTEST_ARGS)

docs: .venv/ready-docs  ## the documentation, as HTML in docs/_build
	@$(IN_VENV) -m sphinx -W --keep-going -q docs docs/_build
	@echo "docs/_build/index.html"

bench: .venv-bench/ready  ## accuracy and speed beside jax.nn, optax and torch (TORCH= to leave torch out)
	@.venv-bench/bin/python -m benchmarks.accuracy $(BENCH_ARGS)
	@.venv-bench/bin/python -m benchmarks.speed $(BENCH_ARGS)
	@.venv-bench/bin/python -m benchmarks.forms $(BENCH_ARGS)

bench-sparse: .venv-bench/ready  ## sparsemax, entmax and sampling beside optax, jax.random, torch and the entmax package
	@.venv-bench/bin/python -m benchmarks.entmax $(BENCH_ARGS)
	@.venv-bench/bin/python -m benchmarks.sampling $(BENCH_ARGS)
	@.venv-bench/bin/python -m benchmarks.estimators
	@test -z "$(ENTMAX)" || .venv-bench/bin/python -m benchmarks.entmax_suite

bench-hierarchical: .venv-bench/ready  ## trees and adaptive softmax beside a full softmax, torch and gensim
	@.venv-bench/bin/python -m benchmarks.hierarchical $(BENCH_ARGS)
	@.venv-bench/bin/python -m benchmarks.adaptive $(BENCH_ARGS)
	@test -z "$(GENSIM)" || .venv-bench/bin/python -m benchmarks.gensim_updates $(BENCH_ARGS)

tpu-compile: .venv-tpu/ready  ## compile every public function with the TPU compiler (needs no TPU) and check its memory
	@.venv-tpu/bin/python -m benchmarks.tpu_compile $(TPU_ARGS)
	@.venv-tpu/bin/python -m benchmarks.tpu_hierarchical $(TPU_ARGS)
	@.venv-tpu/bin/python -m benchmarks.tpu_linear $(TPU_ARGS)

clean:  ## remove the environments and everything built
	rm -rf $(ENVIRONMENTS) docs/_build build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than pyproject.toml, or than the interpreter, when what it stands for is out of date.
.venv/ready-%: pyproject.toml .venv/bin/python
	@echo "installing jsoftmax[$*] into .venv"
	@.venv/bin/python -m pip install --quiet --editable '.[$*]'
	@touch $@

.venv-oldest/ready: pyproject.toml .venv-oldest/bin/python
	@echo "installing jsoftmax[test] at its floors into .venv-oldest"
	@.venv-oldest/bin/python -c "import tomllib; \
	  needs = tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']; \
	  print(*(need.replace('>=', '==') for need in needs), sep='\n')" > .venv-oldest/floors.txt
	@.venv-oldest/bin/python -m pip install --quiet --editable '.[test]' --constraint .venv-oldest/floors.txt
	@touch $@

.venv-newest/ready: pyproject.toml .venv-newest/bin/python
	@echo "installing jsoftmax[test] with the newest releases into .venv-newest"
	@.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[test]'
	@touch $@

.venv-bench/ready: pyproject.toml .venv-bench/bin/python
	@echo "installing jsoftmax and $(or $(TORCH),no torch) into .venv-bench"
	@.venv-bench/bin/python -m pip install --quiet --editable .
	@test -z "$(TORCH)" || .venv-bench/bin/python -m pip install --quiet $(TORCH) \
	  || echo "$(TORCH) does not install here: its column stays empty"
	@test -z "$(ENTMAX)" || .venv-bench/bin/python -m pip install --quiet $(ENTMAX) pytest \
	  || echo "$(ENTMAX) does not install here: its columns stay empty"
	@.venv-bench/bin/python -m pip install --quiet matplotlib $(GENSIM) \
	  || echo "$(GENSIM) does not install here: make bench-hierarchical GENSIM= goes without"
	@touch $@

# The TPU compiler is 480 MB and noisy on a machine without a TPU, so no other target shares its environment.
.venv-tpu/ready: pyproject.toml .venv-tpu/bin/python
	@echo "installing jsoftmax and libtpu into .venv-tpu"
	@.venv-tpu/bin/python -m pip install --quiet --editable . libtpu
	@touch $@

# Runs a command in .venv-newest, made of the first interpreter found; says so where there is none.
define in_newest
found=$$(for name in $(NEWEST); do for python in "$$name" \
  "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/"$${name#python}"*/bin/"$$name"; do \
  "$$python" -c 0 2> /dev/null && echo "$$python" && break 2; done; done); \
if test -z "$$found"; then echo "none of $(NEWEST) found: the newest releases are not tested here"; \
else $(MAKE) --no-print-directory .venv-newest/ready PYTHON="$$found" && $(1); fi
endef

# "3.9 False" for an interpreter that is too old, nothing where there is none.
FOUND = $(shell { $(PYTHON) -c 'import sys; v = sys.version_info; \
  print("%d.%d" % v[:2], v >= (3, 11))'; } 2> /dev/null)

$(ENVIRONMENTS:%=%/bin/python): %/bin/python:
	$(if $(filter True,$(FOUND)),,$(error jsoftmax needs Python 3.11 or newer, \
	  and "$(PYTHON)" is $(or $(firstword $(FOUND)),missing): try make $(MAKECMDGOALS) PYTHON=python3.11))
	@$(PYTHON) -m venv --clear $*
