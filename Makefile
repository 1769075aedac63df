# What a newcomer types. Everything is installed into .venv, from the versions in constraints.txt.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := --constraint constraints.txt --build-constraint constraints.txt
OPTIONS ?=
# The build of llama.cpp: cuda, hip, vulkan, cpu, or auto. Empty keeps the one that is installed, or builds for the CPU.
GPU ?=

.DEFAULT_GOAL := help
.PHONY: help demo install transformers test unit serve bench bench-gpu chaos soak audit check format clean FORCE

help: ## show this list
	@echo "Millrace: batch inference and chat on the GGUF models you own."
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/installed ## install, label 240 tickets in a batch, answer a chat, stop
	@$(BIN)/millrace demo

serve: .venv/installed ## install, then serve the models of models/ on 127.0.0.1:8000
	@$(BIN)/millrace serve

install: .venv/installed ## install only; GPU=cuda, hip, vulkan or auto (with demo and serve, too) builds for a GPU

transformers: .venv/installed ## install torch and transformers, for models with `backend: transformers`
	@$(PIP) install --quiet $(PINNED) --editable '.[transformers]'

test: .venv/installed-dev ## install, then lint, types, import rules and the whole test suite
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m tests.contract.clients.install
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

unit: .venv/installed-dev ## only the tests that need no service: under a minute
	@$(BIN)/pytest tests/unit --numprocesses 2 --dist loadfile --quiet

check: format test ## format, then everything `make test` does: before every commit

bench: .venv/installed-dev ## measure speed and memory; OPTIONS=--help lists options
	$(BIN)/python -m bench $(OPTIONS)

bench-gpu: .venv/installed-dev ## tokens per second on a GPU, over a bare loop and llama-server; OPTIONS=--help lists options
	$(BIN)/python -m bench.gpu $(OPTIONS)

audit: .venv/python ## ask whether published advisories name a package we install; needs the network
	$(BIN)/python -m tools.audit

.PHONY: lint
lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.wording

SEED ?= 7
MINUTES ?= 10

chaos: .venv/installed-dev ## random faults on a live stack for MINUTES, drawn from SEED; nothing may be lost
	$(BIN)/python -m tests.faults.chaos --seed $(SEED) --minutes $(MINUTES)

soak: .venv/installed-dev ## constant load for MINUTES, every process restarted on the way; nothing may grow
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

format: .venv/installed-dev ## format and sort imports
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

clean: ## remove the installation and the state of the stack (its database and files too)
	rm -rf .venv .state

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Millrace needs Python 3.11 or later; '$(PYTHON)' is not. Name another one: make PYTHON=/path/to/python3.12"; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 || \
	  { echo "Millrace needs a C++ compiler, since llama.cpp is built for this machine. On Debian or Ubuntu: apt install g++"; exit 1; }
	@echo "Making .venv …"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --quiet pip==26.3
	@touch $@

.venv/installed: .venv/python pyproject.toml constraints.txt $(if $(GPU),FORCE)
	@$(BIN)/python -m tools.install --gpu "$(GPU)"

.venv/installed-dev: .venv/installed
	@echo "Installing what the tests need …"
	@$(PIP) install --quiet $(PINNED) --editable '.[dev]'
	@touch $@
