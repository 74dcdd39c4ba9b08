# Two targets set everything up: `make demo` runs the main job, `make test` passes the tests. `make quick` leaves out
# the tests that take over a second.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick check install clean
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

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "curate needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev,benchmark,c2pa,generate,ray,s3]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
