# make demo    everything from nothing: .venv, install, the demo pipeline on this machine
# make test    format, lint, types and the whole suite (Slurm tests run where Slurm is installed)
# make gpu     on a machine with an NVIDIA GPU: its tests and all measurements, nine minutes
# make bench   the benchmarks; python -m bench.NAME runs one
# make test-faults  real faults put into real training on a real Slurm: bench/results/faults.md
# make mutants which small faults the tests do not see; ONLY='jobs.scheduling.plan*' for some of them
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test test-faults gpu lint bench mutants setup clean

setup: .venv/installed

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "trainyard needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -q jobs lact_asr distill # travels with each run's code: jobs start 0.1 s sooner
	touch $@

demo: setup
	$(BIN)/python launch.py run demo --cluster local --wait

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n auto

SPEECH := $(wildcard ../shared/data/speech/dev)

test-faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.faults $(SPEECH:%=--data %)

MINI := $(wildcard ../shared/data/mini_librispeech/train-clean-5)

gpu: setup
	$(BIN)/python -m bench.gpu $(MINI:%=--data %)

bench: setup
	$(BIN)/python -m bench.launcher

mutants: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(ONLY) | tr '\r' '\n' | tail -1
	$(BIN)/mutmut results

clean:
	rm -rf .venv build mutants *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
