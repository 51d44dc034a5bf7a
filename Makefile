# `make run` and `make test` need only Python 3.11+, git and make; both do nothing twice.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# DVC's stages say `python`: it must be the one of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
# DVC keeps pickles there; its default is a folder that every user of the machine may write to.
ifndef DVC_SITE_CACHE_DIR
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/gpt2-workflow
export DVC_SITE_CACHE_DIR := $(CACHE)/dvc
$(shell mkdir -p -m 700 "$(CACHE)")
endif

.PHONY: run test test-all test-pages test-kernels docs torture fuzz bench bench-gpu setup setup-dev lint serve

run: setup
	@touch .venv/run-started
	@python -m gpt2ops.pipeline.lockfile && dvc repro
	@test reports/report.html -nt .venv/run-started || python -m gpt2ops.reporting.summary

# What a change needs: minutes.
test: setup-dev
	@$(PYTEST) -m "not slow and not pages"

# That, and the slow tests; the pages have a target of their own.
test-all: test
	@$(PYTEST) -m "slow and not pages"

# Every command of the README and the docs, run as it stands there.
test-pages: setup-dev
	@python -m pytest -n 2 -m pages

# The GPU's decoding kernels, by Triton's interpreter on a CPU.
test-kernels: setup-dev
	@python -m pip install --quiet --no-deps --upgrade --target .venv/kernels -r requirements-kernels.txt
	@PYTHONPATH=.venv/kernels python -m pytest -q tests/gpt2core/decoding/rows/test_fused.py

# The documentation site, into site/.
docs: setup-dev
	@python .ci/build_docs.py

# Kills whole pipelines at random moments; an hour or two for a thousand kills.
torture: setup-dev
	@python -m tests.harness.torture --kills $(or $(KILLS),1000)

# Damaged inputs for every reader; about half an hour for a hundred thousand.
fuzz: setup-dev
	@python -m tests.harness.fuzz --cases $(or $(CASES),100000)

# Speed against named peers, into benchmarks/RESULTS.md; an hour or two on two cores that do nothing else.
bench: setup-dev
	@python -m benchmarks.starting && python -m benchmarks.tokenizing && python -m benchmarks.linear
	@python -m benchmarks.training && python -m benchmarks.packing && python -m benchmarks.validation_race

# Every figure of one GPU in nine minutes, into benchmarks/RESULTS.md.
bench-gpu: setup-dev
	@python -m benchmarks.gpu

lint: setup-dev
	@ruff check . && ruff format --check . && mypy

serve: setup
	@python -m flows.serve

setup: .venv/ready

setup-dev: .venv/ready-dev

.venv/ready: requirements.txt pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing requirements.txt into .venv (once; some minutes) ..."
	@$(INSTALL) -r requirements.txt
	@$(INSTALL) --no-deps --editable .
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true
	@touch .venv/ready

.venv/ready-dev: .venv/ready requirements-dev.txt
	@echo "installing requirements-dev.txt into .venv (once) ..."
	@$(INSTALL) -r requirements-dev.txt
	@touch .venv/ready-dev
