# One command each; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests start Python some hundred and fifty times: compiled once is enough.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help serve kafka test test-console screenshots follow faults fuzz generators check docs bench format requirements clean

help: ## list the commands
	@grep -hE '^[a-z.A-Z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --no-deps

$(VENV): $(VENV)/ready ## make the virtual environment, everything in it pinned by hash

# Two sets: serving needs half of the space that tests and checks need. pip shows its progress.
$(VENV)/serving: requirements/embedded.txt requirements/build.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "Installing the packages that serving needs into $(VENV), once: $$(cat requirements/embedded.txt requirements/build.txt | grep -c ==) of them."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) --require-hashes -r requirements/build.txt -r requirements/embedded.txt
	@touch $@

# The service itself, as it stands in this folder. Made anew where the options of the package change.
$(VENV)/service: $(VENV)/serving pyproject.toml
	@$(PIP_INSTALL) --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/ready: requirements/dev.txt | $(VENV)/service
	@echo "Installing the packages that tests and checks need on top: $$(grep -c == requirements/dev.txt) in all."
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

serve: $(VENV)/service ## run the service and its own PostgreSQL on 127.0.0.1:8000
	@exec $(BIN)/pqs serve

kafka: ## run an Apache Kafka on 127.0.0.1:9092, where Java 17 and Maven are
	@exec tests/kafka/run

test: $(VENV) ## run the whole suite against a real PostgreSQL of its own
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --cov --cov-report= $(ARGS)
	$(BIN)/python -m coverage report --fail-under=100

test-console: $(VENV) ## test the console in Chromium; with a million rows: make test-console ROWS=1000000
	TEST_CONSOLE_ROWS=$(or $(ROWS),20000) $(BIN)/python -m pytest -n 1 tests/console -m console

screenshots: $(VENV) ## write the pictures of the console into docs
	$(BIN)/python -m tests.console.screenshots

follow: $(VENV) ## write with kills and follow for ten minutes, nothing lost; shorter: make follow SECONDS=60
	TEST_FEED_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -n 0 -q tests/feed/test_settled.py

faults: $(VENV) ## kill, stall and cut everything under load, and check the history; make faults SECONDS=60 SEED=1
	$(BIN)/python -m tests.faults $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(LONG),--long) $(if $(PLANTED),--planted) $(if $(JSON),--json $(JSON))

fuzz: $(VENV) ## fuzz the HTTP framing of a service for ten minutes; shorter: make fuzz SECONDS=60
	$(BIN)/python -m tests.fuzz.framing --seconds $(or $(SECONDS),600)

generators: $(VENV) ## generate clients in four languages, compile them and use them against a service
	$(BIN)/python -m pytest -n 0 tests/edge -m generators

check: $(VENV) ## format, lint, spelling, types, import directions, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture

docs: $(VENV) ## write the generated blocks of docs/reference from the code
	$(BIN)/python -m docs.reference

bench: $(VENV) ## measure against the peers, up to 30 minutes; one part: make bench ONLY=lookup
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(COMPARE),--compare $(COMPARE)) $(if $(KEEP),--keep $(KEEP))

format: $(VENV) ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

requirements: $(VENV) ## pin every dependency again: names, versions and hashes, no addresses
	$(PIN) requirements/runtime.txt pyproject.toml
	$(PIN) requirements/embedded.txt --extra embedded pyproject.toml
	$(PIN) requirements/oidc.txt --extra oidc pyproject.toml
	$(PIN) requirements/tracing.txt --extra tracing pyproject.toml
	$(PIN) requirements/build.txt --group build
	$(PIN) requirements/dev.txt --extra embedded --extra oidc --extra tracing --group dev pyproject.toml

PIN := $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate --output-file

clean: ## remove what the commands above made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
