# Every target sets up what it needs; a second run reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The demo needs little of that; where all of it is there, that will do.
LIGHT := $(if $(wildcard $(READY)),$(READY),$(VENV)/.demo)
# Two workers fit a small machine; more where there is more.
WORKERS ?= auto
# Real servers and a busy machine can break a test by chance: it may try once more.
RERUNS ?= 1
BENCH ?=
PEERS ?=
DEMO ?=
CHAOS ?=
CONSISTENCY ?=
FOREIGN ?=
VISITS ?=
SIMULATE ?=
SOAK ?=
FRESH ?=

.PHONY: test coverage check format lint types long demo bench simulate chaos consistency foreign soak clean

# The summary names what passed at the second try only.
test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --benchmark-disable --reruns $(RERUNS) -rfER $(TESTS)

# Lines and branches of both packages; fails below the floor in pyproject.toml.
coverage: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --benchmark-disable --cov $(TESTS)

check: lint types long

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# Random transactions beside a plain session, 20,000 steps and more: the same each
# time, and others with FRESH=1. And a million picks of each balancer by eight threads.
long: $(READY)
	STEPS=long FRESH=$(FRESH) $(BIN)/python -m pytest -q tests/stateful/test_machine.py
	STEPS=long $(BIN)/python -m pytest -q tests/balancers/test_long.py

demo: $(LIGHT)
	$(BIN)/python -m examples.tour $(DEMO)

# PEERS=1 measures the project beside others, in an environment of its own, and writes
# benchmarks/README.md: some five minutes. BENCH='--only pick' chooses.
bench: $(READY)
	$(BIN)/python -m benchmarks$(if $(PEERS),.peers) $(BENCH)

# Balancers and settings in a simulated fleet, the same each time; some minutes of it.
# It writes benchmarks/simulation.md; SIMULATE='--only slow --seed 2' only prints.
simulate: $(READY)
	$(BIN)/python -m benchmarks.simulate $(or $(SIMULATE),--write)

# Faults strike real servers under load, some minutes of them, from a seed that is
# printed; CHAOS='--seed 7 --faults kill,frozen --workers gunicorn' chooses.
chaos: $(READY)
	$(BIN)/python -m tests.chaos $(CHAOS)

# 100,000 texts that are no tokens; then clients read and write while replicas lag, die
# and are promoted, and what they must never see is found;
# CONSISTENCY='--guarantee none --lag 2 --database mariadb' chooses.
consistency: $(READY)
	STEPS=long FRESH=$(FRESH) $(BIN)/python -m pytest -q tests/consistency/test_tokens.py
	$(BIN)/python -m tests.consistency $(CONSISTENCY)

# Other projects' tests, with and without replicas; FOREIGN=flask-admin runs one. Then
# visits to three applications, which need git; VISITS='microblog --rounds 9' chooses.
foreign: $(READY)
	$(if $(VISITS),,$(BIN)/python -m tests.foreign $(FOREIGN))
	$(if $(FOREIGN),,$(BIN)/python -m tests.foreign.visits $(VISITS))

# 100,000 requests of every kind to one process, which must keep nothing of them;
# SOAK=--traced counts bytes, too.
soak: $(READY)
	$(BIN)/python -m tests.memory $(SOAK)

$(READY): EXTRA := dev
$(VENV)/.demo: EXTRA := demo
$(READY) $(VENV)/.demo: pyproject.toml
	@echo "Setting up $(VENV) (once) ..."
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "flask_replicated needs Python 3.10 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA)]'
	@touch $@

clean:
	rm -rf $(VENV) .nox dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
