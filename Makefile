# Plain make and sh; nothing here but sim-drivers needs root. Everything is installed into .venv of this checkout.
#
#   PYTHON    the interpreter to build .venv with; default: the first of python3.11, python3.12, python3
#   SEED      of `make demo`
#   WORKERS   test processes (pytest-xdist)

PYTHON ?=
SEED ?= 0
WORKERS ?= auto
BIN = .venv/bin
STAMP = .venv/.installed

help: ## list the targets (default)
	@echo "usage: make TARGET [SEED=0] [PYTHON=python3.11] [WORKERS=auto]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: $(STAMP) ## build .venv with the versions of constraints.txt (at once when done)

# torch first and alone: a build that is already in .venv (CPU-only, another CUDA) is then kept as it is. pip compiles on one
# core, compileall on all of them; neither minds files that are no Python, which some libraries have.
$(STAMP): pyproject.toml constraints.txt
	@$(MAKE) venv
	$(BIN)/python -m pip install --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $(STAMP)

venv: ## build an empty .venv, to install a torch of your own into before `make setup`
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	py="$(PYTHON)"; \
	for candidate in python3.11 python3.12 python3; do \
		if [ -z "$$py" ] && $$candidate -c "" >/dev/null 2>&1; then py=$$candidate; fi; \
	done; \
	if [ -z "$$py" ] || ! command -v "$$py" >/dev/null 2>&1; then \
		echo "make: no Python found. Install Python 3.11, or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! "$$py" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then \
		echo "make: $$py is $$("$$py" -V 2>&1); constraints.txt needs Python 3.11 or 3.12. Name one: make setup PYTHON=python3.11" >&2; exit 1; \
	fi; \
	echo "building .venv with $$("$$py" -V 2>&1)"; \
	"$$py" -m venv .venv || { echo "make: $$py could not build .venv (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; }

demo: setup ## demonstrations, a base policy, its refinement and a report, into runs/demo
	$(BIN)/pidec demo --seed $(SEED) --out runs/demo

test: setup ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal -n $(WORKERS) --maxprocesses 8

lint: setup ## formatting, lint, types and import contracts, changing nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test ## what a change has to pass: lint and tests

format: setup ## format, and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

sim-drivers: ## software renderers for simulators, where there is no GPU (Debian, Ubuntu; needs root or sudo)
	scripts/sim-drivers

clean: ## remove caches and build leftovers; runs/ and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup venv demo test lint check format sim-drivers clean
