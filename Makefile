# `make run` and `make test` need only Python 3.11+, git and make; both do nothing twice.
PYTHON ?= python3
BIN := .venv/bin
# DVC's stages say `python`: it must be the one of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true

.PHONY: run test test-pages torture fuzz bench setup lint serve

run: setup
	@touch .venv/run-started
	@python -m gpt2ops.pipeline.lockfile && dvc repro
	@test reports/report.html -nt .venv/run-started || python -m gpt2ops.reporting.summary

test: setup
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not pages"

# Every command of the README and the docs, run as it stands there.
test-pages: setup
	@python -m pytest -n 2 -m pages

# Kills whole pipelines at random moments; an hour or two for a thousand kills.
torture: setup
	@python -m tests.harness.torture --kills $(or $(KILLS),1000)

# Spoiled inputs for every reader; about half an hour for a hundred thousand.
fuzz: setup
	@python -m tests.harness.fuzz --cases $(or $(CASES),100000)

# Speed against named peers, into benchmarks/RESULTS.md; an hour or two on two cores that do nothing else.
bench: setup
	@python -m benchmarks.starting && python -m benchmarks.tokenizing && python -m benchmarks.linear
	@python -m benchmarks.training && python -m benchmarks.validation_race

lint: setup
	@ruff check . && ruff format --check . && mypy

serve: setup
	@python -m flows.serve

setup: .venv/ready

.venv/ready: requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing requirements.txt into .venv (once; some minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true
	@touch .venv/ready
