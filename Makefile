# The two commands of the README are `make up` and `make test`; every other target is a part of them or a shortcut.
SHELL := /bin/bash
CLIENTS ?=
ROUNDS ?=
N ?= 3
PREFIX ?= hosts
ARGS ?=
LANES ?=
PLAYBOOK = .venv/bin/ansible-playbook

# make takes any variable without a word: a misspelt one would change nothing.
KNOWN := CLIENTS ROUNDS N PREFIX ARGS LANES PLAYBOOK SHELL
TYPED := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
ifneq ($(filter-out $(KNOWN),$(TYPED)),)
$(error $(filter-out $(KNOWN),$(TYPED)) is no variable of this Makefile -> type make up CLIENTS=3 ROUNDS=5, or ARGS='-e NAME=VALUE' for a variable of site.yml)
endif

# Bytecode is kept, also where the environment says otherwise: torch, flwr and Ansible are imported by hundreds of processes.
export PYTHONDONTWRITEBYTECODE =

.PHONY: up down connect disconnect setup setup-dev engine test lint test-unit test-plugins test-runtime test-cluster test-lane-a test-lane-b test-vagrant test-python313 test-kernel test-libvirt hosts hosts-down screenshots help

help:  ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

up: setup  ## Deploy on this machine and train: make up [CLIENTS=3 ROUNDS=5]
	$(PLAYBOOK) site.yml $(if $(CLIENTS),-e fl_client_count=$(CLIENTS)) $(if $(ROUNDS),-e rounds=$(ROUNDS)) $(ARGS)

down: setup  ## Remove the containers of `make up` (ARGS='-e purge=true' deletes everything, once you have said yes)
	$(PLAYBOOK) teardown.yml $(ARGS)

connect: setup  ## Let the command flwr reach the federation: flwr run . coldframe
	$(PLAYBOOK) connect.yml $(ARGS)

disconnect: setup  ## Close that connection
	$(PLAYBOOK) connect.yml -e close=true $(ARGS)

setup:  ## Prepare the controller: .venv and a few Debian packages
	@scripts/setup.sh

setup-dev:
	@scripts/setup.sh --dev
	@scripts/prometheus3.sh

test: setup-dev  ## Test everything, on real hosts: two lanes side by side, and a table of what they took
	@env --unset=MAKEFLAGS scripts/with_engine.sh .venv/bin/python -m tests.suite --since "$$COLDFRAME_SINCE" $(LANES)

# When make was called: the table counts the set-up too.
test: export COLDFRAME_SINCE := $(shell date +%s)

lint: setup-dev  ## ansible-lint, yamllint, ruff, mypy
	scripts/lint.sh

# Two processes: Ansible patches sys.intern where it is imported, and torch's compiler trips over that.
test-unit: test-plugins test-runtime  ## fl/, coldframe/, plugins/, and the repository agrees with itself

test-plugins: setup-dev
	.venv/bin/python -m pytest -q tests/static tests/unit/test_plugins_*.py $(ARGS)

test-runtime: setup-dev
	.venv/bin/python -m pytest -q tests/unit --ignore-glob='*/test_plugins_*.py' $(ARGS)

# The tests type make themselves: theirs is not a part of this one.
test-cluster: setup-dev  ## Real deployments on test hosts
	env --unset=MAKEFLAGS scripts/with_engine.sh .venv/bin/python -m pytest -v tests/cluster $(ARGS)

test-lane-a: setup-dev  # the tests of one federation
	env --unset=MAKEFLAGS scripts/with_engine.sh .venv/bin/python -m pytest -v -m lane_a tests/cluster $(ARGS)

test-lane-b: setup-dev  # the tests that make hosts of their own
	env --unset=MAKEFLAGS scripts/with_engine.sh .venv/bin/python -m pytest -v -m lane_b tests/cluster $(ARGS)

test-vagrant: setup-dev  ## Vagrant's machines for real, as containers; the controller on Python 3.13, where one is installed
	@scripts/setup_vagrant.sh
	env --unset=MAKEFLAGS PYTHON="$$(scripts/python313.sh)" scripts/with_engine.sh .venv/bin/python -m pytest -v tests/vagrant/test_vagrant.py $(ARGS)

test-python313: setup-dev  ## The tests of plugins/ on Python 3.13, where one is installed
	scripts/test_python313.sh $(ARGS)

test-kernel: setup-dev  ## Limits on a kernel with control groups v2 and netem, in a virtual machine
	@scripts/setup_kernel.sh
	.venv/bin/python -m pytest -v tests/kernel $(ARGS)

# Not part of `make test`: it is very slow without KVM.
test-libvirt: setup-dev  ## Vagrant's machines as virtual machines
	@scripts/setup_vagrant.sh --libvirt
	scripts/with_libvirt.sh .venv/bin/python -m pytest -v -s tests/vagrant/test_libvirt.py $(ARGS)

engine: setup  ## A Docker engine on this machine
	$(PLAYBOOK) playbooks/engine.yml

hosts: setup-dev engine  ## Make N test hosts and print their inventory: make hosts N=3
	.venv/bin/python -m tests.hosts up $(N) --prefix $(PREFIX)

screenshots: setup-dev  ## Draw the dashboards of the standing federation into docs/img/
	scripts/screenshots.sh $(ARGS)

hosts-down: setup-dev  ## Remove them
	.venv/bin/python -m tests.hosts down --prefix $(PREFIX)
