# `make test` and `make lint` set up what they need; the slower suites are run by name.
SHELL := /bin/bash
PYTHON := .venv/bin/python
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -p no:cacheprovider
# Files run two at a time, one on each core, but for whole runs of the commands, which have the machine to themselves.
TWO_AT_A_TIME := tests/arch tests/unit tests/driver tests/parity tests/contract

.PHONY: setup openrlhf lint test test-slow test-slurm test-browser test-gpu lock clean

setup:
	./quick_start.sh --setup-only

# OpenRLHF itself, for the parity tests. Without its dependencies (flash-attn cannot be had on a CPU)
# and without the top-level `tests` package that its wheel brings along. Its wheel is for Python 3.11 only.
openrlhf: setup
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  && ! $(PYTHON) -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("openrlhf"))'; then \
	    VIRTUAL_ENV=.venv .venv/.uv/bin/uv pip install -q --no-deps openrlhf==0.11.2; \
	    rm -rf .venv/lib/python3.11/site-packages/tests; \
	fi

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: openrlhf
	$(PYTEST) $(TWO_AT_A_TIME) -m "not slow and not gpu" -n 2 --dist loadfile --durations=10
	$(PYTEST) tests/e2e -m "not slow and not gpu" --durations=15

test-slow: openrlhf
	$(PYTEST) tests -m "slow and not gpu and not slurm and not browser" --durations=15

# Installs Slurm and shellcheck where it may; else the tests skip and say why.
test-slurm: openrlhf
	tests/install.sh sbatch:slurm-wlm munged:munge shellcheck:shellcheck ip:iproute2
	$(PYTEST) tests/slurm tests/arch/test_launchers.py tests/arch/test_job_scripts.py --durations=15

# The pages and the terminal programs, as a person drives them; installs Chromium and tmux where it may.
test-browser: setup
	tests/install.sh chromium:chromium tmux:tmux
	$(PYTEST) tests/browser --durations=5

test-gpu: openrlhf
	$(PYTEST) tests -m gpu --durations=15

lock: setup
	PATH="$(CURDIR)/.venv/.uv/bin:$$PATH" requirements/compile.sh

clean:
	rm -rf .venv outputs build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
