# Headrace. `make` lists what there is. Everything is installed into .venv, from requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
LOCUST_INSTALLED := .venv-locust/.installed
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --upgrade \
	--no-emit-index-url --no-emit-find-links --no-header --quiet
CODE := config engine api bench tests

# No byte code of ours is needed, and an alias of the shell must not matter.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test bench bench-full soak bench-test stores-test check sim targets mutants demo rebuild locust locust-setup faults fuzz settings lock fmt clean setup

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

run: setup ## set up what is missing and serve: api on 127.0.0.1:8000, intake on 127.0.0.1:8001
	@exec $(BIN)/headrace serve

# What measures and kills for minutes has a target of its own: this one stays below 8 minutes.
LONG_BENCH := tests/integration/test_bench_chaos.py tests/integration/test_bench_micro.py
LONG_STORES := tests/e2e/test_outages.py tests/e2e/test_stores_that_die.py

test: check ## set up what is missing and run every check and test that a change must pass
	@$(BIN)/python -m pytest $(addprefix --ignore=,$(LONG_BENCH) $(LONG_STORES))

stores-test: setup ## the long tests of a served program whose stores die, refuse or are away: log, readiness, restarts (3 min)
	@$(BIN)/python -m pytest $(LONG_STORES)

bench-test: setup locust-setup ## the long tests of the bench: chaos, a broken engine that the audit must catch, micros, locust (3 min)
	@$(BIN)/python -m pytest $(LONG_BENCH) tests/integration/test_bench_locust.py

check: setup ## formatting, lint and types
	@$(BIN)/ruff format --check --quiet $(CODE) || { echo "make fmt puts that right."; exit 1; }
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/mypy

# SEED= tells one of them line by line; a seed that breaks a promise is printed with the command that repeats it.
sim: setup ## simulate SEEDS clusters (2000) of STEPS steps (200) under faults, in JOBS processes (2); or one: SEED=
	@$(BIN)/python -m tests.simulation --steps $(or $(STEPS),200) \
		$(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000) --jobs $(or $(JOBS),2))

demo: setup ## start it, send a large generated load, print rate, verdicts, reports and audit
	@$(BIN)/python -m bench.demo

rebuild: setup ## measure how long a campaign of a million events is away when Redis has lost everything
	@$(BIN)/python -m bench.rebuild

# API= and INTAKE= name an engine that runs already; USERS=, SECONDS=, PROCESSES=, RATE= and CLASSES= what is asked for.
locust: setup locust-setup ## load it with locust, senders, readers and editors together, for 10 seconds, and audit: docs/load.md
	@$(BIN)/python -m bench.locust_run --users $(or $(USERS),20) --seconds $(or $(SECONDS),10) \
		--processes $(or $(PROCESSES),1) $(if $(RATE),--rate $(RATE)) $(if $(API),--api $(API)) \
		$(if $(INTAKE),--intake $(INTAKE)) $(CLASSES)

# HISTORY= runs each seed a second time, after so many million events of the last ten minutes over 100 campaigns.
faults: setup ## run every fault with SEEDS seeds (20) in JOBS worlds at once (4): an hour; journals of failures in build/faults
	@$(BIN)/python -m tests.faults --seeds $(or $(SEEDS),20) --jobs $(or $(JOBS),4) --keep build/faults \
		$(if $(HISTORY),--history $(HISTORY)) $(if $(ONLY),--only "$(ONLY)")

# HOSTILE_SECONDS= lasts so long instead, RATE= connections a second (100), with memory and descriptors before, during and after.
fuzz: setup ## send REQUESTS (20000) mutated requests of SEED to both listeners of a served program: no end, no traceback, no lie
	@$(BIN)/python -m tests.fuzz $(if $(SEED),--seed $(SEED)) $(if $(HOSTILE_SECONDS),--seconds $(HOSTILE_SECONDS) \
		--rate $(or $(RATE),100) --connections 600,--requests $(or $(REQUESTS),20000))

bench: setup locust-setup ## the bench suite in its quick form, audited: JSON, table and page in build/bench (below 10 min)
	@$(BIN)/headrace-bench run

bench-full: setup locust-setup ## the same with five rounds of longer steps, every fault and a soak (an hour)
	@$(BIN)/headrace-bench run --full

# OPTIONS= are further ones of `headrace-bench soak`: its --help lists them.
soak: setup ## full rate for MINUTES (20) on the defaults, audited: memory, rates and sizes as JSON and plot in build/soak
	@$(BIN)/headrace-bench soak --minutes $(or $(MINUTES),20) $(OPTIONS)

targets: setup ## the table of targets, each figure in paired, audited runs: an hour; ONLY= names experiments, ROWS= of the full table
	@$(BIN)/headrace-bench targets $(if $(ONLY),--only "$(ONLY)") $(if $(ROWS),--rows $(ROWS))

mutants: setup ## switch off each safety line in turn: the suite must fail every time (20 min); FAULTS=1: under real faults
	@$(BIN)/python -m tests.mutants $(if $(FAULTS),--faults)

settings: setup ## write docs/settings.md anew from config/settings.py
	@$(BIN)/python -c 'from config.settings import settings_page; print(settings_page(), end="")' > docs/settings.md

# The newest versions that pyproject.toml and bench/locust.in allow, for every platform, with hashes, from whatever index is set up.
lock: setup ## write requirements.lock anew from pyproject.toml, and bench/locust.lock from bench/locust.in
	@$(COMPILE) pyproject.toml --extra dev --extra bench -o requirements.lock
	@$(COMPILE) bench/locust.in -o bench/locust.lock

fmt: setup ## format, and mend what lint can mend
	@$(BIN)/ruff format --quiet $(CODE)
	@$(BIN)/ruff check --fix --quiet $(CODE)

clean: ## remove what make made; the data in .data stays
	@rm -rf .venv .venv-locust .mypy_cache .ruff_cache .pytest_cache build headrace.egg-info
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "Headrace needs Python \
	3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1). With another beside it: make PYTHON=python3.13" >&2; exit 1; }
	@echo "Setting up .venv: a minute, once." >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

# Locust patches its process, pins what we don't, and is needed by nobody else: it has an environment of its own.
locust-setup: $(LOCUST_INSTALLED)

$(LOCUST_INSTALLED): bench/locust.lock
	@echo "Setting up .venv-locust: half a minute, once." >&2
	@$(PYTHON) -m venv .venv-locust
	@.venv-locust/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bench/locust.lock
	@touch $@
