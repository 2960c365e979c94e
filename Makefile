PYTHON ?= python3
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/'

demo: .venv/installed  ## prune the embedded digits model by three methods, and compare them
	$(RUN) ditprune prune --config configs/digits_magnitude.yaml
	$(RUN) ditprune prune --config configs/digits_wanda.yaml
	$(RUN) ditprune prune --config configs/digits.yaml
	$(RUN) python -m ditprune.compare runs/digits/magnitude runs/digits/wanda runs/digits/dit-pruning

test: .venv/installed  ## run the tests, but for slow ones and those that need a GPU
	$(RUN) python -m pytest -q -m "not slow and not gpu"

slow: .venv/installed  ## run the slow tests
	$(RUN) python -m pytest -q -m "slow and not gpu"

lint: .venv/installed  ## check style
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: .venv/installed  ## check types, of the package as it is installed
	rm -rf build/typecheck build/lib
	$(BIN)/pip install -q --no-deps --no-build-isolation --target build/typecheck .
	$(RUN) mypy -p ditprune

check: lint types test  ## lint, types and tests

zoo: .venv/installed  ## train the embedded models anew (digits about half an hour on two cores, shapes hours)
	$(RUN) ditprune fit --config configs/train_digits_classifier.yaml
	$(RUN) ditprune fit --config configs/train_digits.yaml
	$(RUN) ditprune fit --config configs/train_shapes_reader.yaml
	$(RUN) ditprune fit --config configs/train_shapes_clip.yaml
	$(RUN) ditprune fit --config configs/train_shapes_vae.yaml
	$(RUN) ditprune fit --config configs/train_shapes_flux.yaml

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'ditprune needs Python 3.10 or newer: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip -c constraints.txt
	$(BIN)/pip install -q -c constraints.txt setuptools -e ".[dev]"
	touch .venv/installed

.PHONY: help demo test slow lint types check zoo
