# Holdfast. `make help` lists what there is; each target sets up what it needs.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast bench model lint format generate check lock cluster-up cluster-down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a real job on a real cluster, with faults (root; first time about 15 minutes of set-up)
	@scripts/demo

test: ## every test, the end-to-end ones on a real cluster (root; first time about 15 minutes of set-up)
	@scripts/test

test-fast: ## what needs neither cluster nor root (under a minute once set up)
	@scripts/setup
	@.venv/bin/python -m pytest -q -n auto --dist loadfile -m "not cluster and not slow"

bench: setup ## Holdfast and its peers side by side, into build/bench.json (root; hours; ONLY=id,id: some figures; docs/bench.md)
	@PYTHONPATH=bench:demo:cluster .venv/bin/python -m holdfast_bench $(if $(ONLY),--only $(ONLY)) $(BENCH_FLAGS)

lint: setup ## ruff, mypy strict, import layers
	@scripts/lint

format: setup ## rewrite the code in the agreed style
	@.venv/bin/ruff check -q --fix . ; .venv/bin/ruff format -q .

setup: ## the development environment in .venv
	@scripts/setup

generate: setup ## regenerate what is made from other files
	@scripts/generate

check: generate ## fail if a generated file was not committed
	@git diff --exit-code --stat

lock: setup ## resolve the dependencies anew into requirements/*.lock
	@scripts/lock

model: setup ## the commit and recovery protocol, explored in large worlds; then mutations of its rules (MODEL_FLAGS: --help)
	@PYTHONPATH=spec .venv/bin/python -m holdfast_spec $(MODEL_FLAGS)
	@PYTHONPATH=spec .venv/bin/python -m holdfast_spec mutations

cluster-up: ## the local Kubernetes, left running
	@cluster/cluster up

cluster-down: ## take it away without a trace
	@cluster/cluster down

clean: ## remove build results (the shared cache stays)
	@rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
