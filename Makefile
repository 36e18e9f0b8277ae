# The two commands of the README are `make up` and `make test`; every other target is a part of them or a shortcut.
SHELL := /bin/bash
CLIENTS ?= 3
ROUNDS ?= 5
N ?= 3
PREFIX ?= hosts
ARGS ?=
PLAYBOOK = .venv/bin/ansible-playbook

.PHONY: up down setup setup-dev test lint test-unit test-cluster test-static hosts hosts-down help

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

up: setup  ## Deploy on this machine and train: make up [CLIENTS=3 ROUNDS=5]
	$(PLAYBOOK) site.yml -e fl_client_count=$(CLIENTS) -e rounds=$(ROUNDS) $(ARGS)

down: setup  ## Remove the containers of `make up` (ARGS='-e purge=true' removes everything)
	$(PLAYBOOK) teardown.yml $(ARGS)

setup:  ## Prepare the controller: .venv and a few Debian packages
	@scripts/setup.sh

setup-dev:
	@scripts/setup.sh --dev

test: lint test-static test-unit test-cluster  ## Test everything, on real hosts

lint: setup-dev  ## ansible-lint, yamllint, ruff, mypy
	scripts/lint.sh

test-static: setup-dev  ## The repository agrees with itself
	.venv/bin/python -m pytest -q tests/static $(ARGS)

test-unit: setup-dev  ## fl/, coldframe/ and plugins/
	.venv/bin/python -m pytest -q tests/unit $(ARGS)

test-cluster: setup-dev  ## Real deployments on test hosts
	.venv/bin/python -m pytest -q tests/cluster $(ARGS)

hosts: setup-dev  ## Make N test hosts and print their inventory: make hosts N=3
	.venv/bin/python -m tests.hosts up $(N) --prefix $(PREFIX)

hosts-down: setup-dev  ## Remove them
	.venv/bin/python -m tests.hosts down --prefix $(PREFIX)
