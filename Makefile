# The whole of development: `make` lists what there is.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: help init parts check test test-quick bench demo docs lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(VENV)/.ready: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

init: $(VENV)/.ready ## make the environment in .venv, from the lock

parts: init ## install the real parts of the tests, once: proxies, Prefect, an OpenID Provider, …
	$(RUN)/python -m tests.support.install

check: init ## lint, types, the floors of the house, generated documents
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/mypy --explicit-package-bases --exclude flows/ tests/support tests/deploy tests/docker tests/e2e tests/browser tests/bench docs
	cd deploy/demo && ../../$(RUN)/mypy --config-file ../../pyproject.toml demo.py issuer.py
	$(RUN)/mypy deploy/workers/git/git_credential_github_app.py
	$(RUN)/lint-imports
	$(RUN)/python -m docs.generate --check

test: parts ## all tests, with real parts
	$(RUN)/pytest -q -n 3 --no-loadscope-reorder

test-quick: init ## the tests that need no Prefect, proxy or browser
	$(RUN)/pytest -q -n 3 --no-loadscope-reorder tests/core tests/adapters tests/state tests/authn tests/settings tests/web

bench: parts ## measure, print a table, write build/bench.json
	$(RUN)/python -m tests.bench

demo: ## Traefik, Prefect and the service on 127.0.0.1, without Docker
	$(PYTHON) deploy/demo/demo.py

docs: init ## write the generated documents
	$(RUN)/python -m docs.generate

lock: init ## resolve the dependencies anew (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --upgrade --extra redis pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --upgrade --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## remove what was built
	rm -rf $(VENV) .cache .demo build dist .mypy_cache .ruff_cache .pytest_cache
