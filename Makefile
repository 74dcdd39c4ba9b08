# Two targets set everything up: `make demo` runs the main job, `make test` passes the tests. `make quick` leaves out
# the tests that take over a second; `make docs` builds the pages into site/.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

# PyPI's torch for Linux brings some 4.5 GB of CUDA, of no use without an NVIDIA GPU. PyTorch has builds without it, in an
# index of its own; any other index would mix both kinds. `make demo TORCH=cuda` installs PyPI's.
TORCH ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
CPU_BUILDS := https://download.pytorch.org/whl/cpu
ONLY_CPU_BUILDS := env -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null \
	$(PIP) --retries 0 --timeout 15 --index-url $(CPU_BUILDS)

.PHONY: demo test quick check docs install clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	$(BIN)/curate demo

test: check
	$(PYTEST)

quick: .venv/.installed-dev
	$(PYTEST) -m 'not slow'

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "curate needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
ifeq ($(shell uname -s) $(TORCH),Linux cpu)
	@echo "No NVIDIA GPU: PyTorch without CUDA, 1.4 GB with all that curate needs."
	$(ONLY_CPU_BUILDS) torch torchvision || \
		echo "$(CPU_BUILDS) cannot be used: PyTorch of PyPI instead, 6 GB with all that curate needs."
endif
	$(PIP) -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev,benchmark,c2pa,docs,generate,ray,s3]'
	touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) -e '.[docs]'
	touch $@

clean:
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
