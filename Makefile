# Works with GNU make from any path, spaces included: every path here is relative.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test lint bench benchmark benchmark-full report docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s  %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## install aptp with its libraries into .venv (Python 3.11 or newer)

$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'aptp needs Python 3.11 or newer, and "$(PYTHON)" is none; name one: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.11' >&2; \
		exit 1; }
	@echo "installing aptp and its libraries into .venv; the first time takes minutes"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[test]'
	@touch $@

OUT ?= runs/demo
run: install ## prune the embedded model: search, recover, evaluate; leaves runs/demo (OUT=FOLDER for another)
	$(BIN)/aptp run --router=contrastive --balancer=sinkhorn --out "$(OUT)" --resume

lint: install ## style, format, types and the direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache --no-logo

test: lint ## lint, then the whole test suite
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

bench: install ## the benchmarks that pytest-benchmark times
	$(BIN)/python -m pytest benchmarks/ --benchmark-only -s

benchmark: install ## one seed of the core table on the embedded model, and its report: hours, goes on where it stopped
	$(BIN)/aptp sweep benchmarks/experiments/core.yaml --out runs/core
	$(BIN)/aptp report runs/core --out runs/core/report

benchmark-full: install ## every comparison of docs/question.md over 3 to 5 seeds: days on two cores, goes on where it stopped
	$(BIN)/aptp sweep benchmarks/experiments/full.yaml --out runs/full --results benchmarks/results/full; \
		status=$$?; $(MAKE) report && exit $$status

report: install ## remake the published reports from the results that are kept
	$(BIN)/aptp report benchmarks/results/answer/*.json $(wildcard benchmarks/results/full/*.json) --mixed --out docs/report
	$(BIN)/aptp report benchmarks/results/steps/*.json 'benchmarks/results/core/aptp,budget=0.5,seed=0.json' --mixed --out docs/steps-report

docs: install ## write docs/config.md anew from the options' models
	$(BIN)/python docs/config_page.py

clean: ## remove .venv, build products and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
