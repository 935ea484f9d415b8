# Everything for development. `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
PYTEST := pytest -q -n 3 --no-loadscope-reorder
QUICK = $(wildcard $(addprefix tests/,core rendering telemetry adapters settings agent doctor state issuing authn gate cli web))

.PHONY: help init hooks parts check types test test-quick test-providers coverage bench bench-peers bench-docs client-matrix long-run demo docs lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.ready: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

init: $(VENV)/.ready ## create the environment in .venv, from the lock

hooks: init ## run the checks on every commit (pre-commit)
	$(RUN)/pre-commit install

parts: init ## install the real parts that the tests need, once: proxies, Prefect, an OpenID Provider, …
	$(RUN)/python -m tests.support.install || test "$$CI" != true  # tests skip what is missing, except in CI

check: init types ## lint, types, the order of the packages, generated documents
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/lint-imports
	$(RUN)/python -m docs.generate --check

types: init ## check the types
	$(RUN)/mypy
	$(RUN)/mypy --explicit-package-bases --exclude flows/ tests/support tests/deploy tests/docker tests/e2e tests/providers tests/browser tests/bench tests/gate docs
	cd deploy/demo && ../../$(RUN)/mypy --config-file ../../pyproject.toml demo.py issuer.py

test: parts ## run the tests, with real parts: under ten minutes on two cores
	$(RUN)/$(PYTEST) -m "not long"

test-all: parts ## the same, and those that take long: restarts, replicas, installations, more versions
	$(RUN)/$(PYTEST)

test-quick: init ## run the tests that need no Prefect, proxy or browser; verify calls go the short way
	$(RUN)/$(PYTEST) $(QUICK)

test-providers: parts ## run the tests against Keycloak, and each other real provider that is installed
	TEST_PROVIDERS=all $(RUN)/$(PYTEST) -n 1 tests/providers tests/e2e/test_oauth2_proxy.py

coverage: init ## the quick tests by ASGI; fail below 100 % of branches in service/core, or 94 % in the rest
	$(RUN)/coverage erase
	TEST_BY_ASGI=1 $(RUN)/coverage run -m $(PYTEST) $(QUICK)
	$(RUN)/coverage combine --quiet
	@below=; \
	$(RUN)/coverage report --include='service/core/*' --fail-under=100 || below=1; \
	$(RUN)/coverage report --omit='service/core/*' --fail-under=94 || below=1; \
	test -z "$$below"

bench: parts ## measure the speed, print a table, write build/bench.json
	$(RUN)/python -m tests.bench.first_seen
	$(RUN)/python -m tests.bench

bench-peers: parts ## measure the peers that are installed on the same requests, write build/bench-peers.json
	$(RUN)/python -m tests.bench.peers

bench-docs: init ## write what was measured last into docs/performance.md
	$(RUN)/python -m tests.bench.report

client-matrix: parts ## run each version of Prefect's client with each form of credential, print what arrives
	$(RUN)/python -m tests.e2e.client_matrix

long-run: parts ## ten minutes of workers behind the agent, with tokens of 20 s, restarts and new keys
	$(RUN)/python -m tests.e2e.long_run

demo: ## Traefik, Prefect and the service on 127.0.0.1, without Docker
	$(PYTHON) deploy/demo/demo.py

docs: init ## write the generated documents
	$(RUN)/python -m docs.generate

lock: init ## update the locks to the newest dependencies (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --upgrade --extra redis --extra postgresql pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --upgrade --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## remove what was built
	rm -rf $(VENV) .cache .demo build dist .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.*
