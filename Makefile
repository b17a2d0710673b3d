# Everything happens in .venv; nothing else on the machine is touched.
#
#   make demo    set up, train on real images, sample, evaluate, write a report
#   make test    set up, run all tests
#   make soak    set up, the long runs: kills, interruptions, fuzzing
#   make lint, make docs, make benchmarks
#
# On Linux without a GPU the default torch wheel brings gigabytes of CUDA. To avoid that:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
DEMO_FLAGS ?=
BIN := .venv/bin
# Two processes of one thread each, the numbers of a laptop; on a larger machine: make test TESTS=8.
TESTS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test soak lint docs benchmarks clean

demo: .venv/.installed
	$(BIN)/diffit demo $(DEMO_FLAGS)

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTS) --dist worksteal

soak: .venv/.installed-dev
	DIFFIT_SOAK=full $(BIN)/python -m pytest -m soak

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed-docs
	$(BIN)/mkdocs build --strict

benchmarks: .venv/.installed-bench
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/dimr.py
	$(BIN)/python benchmarks/uvit.py
	$(BIN)/python benchmarks/ternary.py
	$(BIN)/python benchmarks/quantize.py
	$(BIN)/python benchmarks/smoothing.py
	$(BIN)/python benchmarks/explanations.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'diffit needs Python 3.11 or later; name one: make demo PYTHON=/path/to/python3.11'; exit 2; }
	$(PYTHON) -m venv .venv

KERNELS := setup.py $(wildcard src/diffit/nn/kernels/*.cpp src/diffit/nn/kernels/*.h)

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt $(KERNELS)
	@echo 'Installing into .venv (PyTorch is large: this can take some minutes) ...'
ifneq ($(TORCH_INDEX),)
	$(PIP) --index-url $(TORCH_INDEX) torch
endif
	$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) -e '.[docs]'
	@touch $@

.venv/.installed-bench: .venv/.installed
	$(PIP) -e '.[bench]'
	@touch $@

clean:
	rm -rf .venv build dist site demo-run
