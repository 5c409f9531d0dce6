# `make train`: set up and train the demo. `make check`: form and types, by ruff and mypy. `make test`: these and the
# whole test suite. `make quick`: these, the tests that take no training, and one tiny run of each script.
# `make results`: README's table and results/README.md, from the records. `make constraints`: newer packages.
# Each may be run again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A GPU with bf16 units takes bf16.yaml, an older one (T4) t4.yaml, and without any GPU it is cpu.yaml.
CONFIG = $(shell $(BIN)/python -c "import torch; print('cpu' if not torch.cuda.is_available() \
	else 'bf16' if torch.cuda.get_device_capability() >= (8, 0) else 't4')")

.PHONY: train check test quick results constraints clean

train: $(VENV)/installed
	$(BIN)/accelerate launch --config_file accelerate_configs/$(CONFIG).yaml train_translation.py demo --resume latest

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

quick: check
	$(BIN)/python -m pytest -m "smoke or not (slow or training)"

results: $(VENV)/installed
	$(BIN)/python -m tools.results

# torch first and alone: with it in place, no other package asks for a newer one.
$(VENV)/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install -q -c constraints.txt -r requirements-dev.txt
	touch $@

# Anew from the ranges; to be committed once `make test` passes with it. CUDA's libraries are pinned by torch itself.
constraints:
	$(PYTHON) -m venv --clear $(VENV)-new
	$(VENV)-new/bin/pip install -q -r requirements-dev.txt
	(grep '^#' constraints.txt && $(VENV)-new/bin/pip freeze --all | sed 's/+.*//' \
		| grep -Ev '^(pip|triton|cuda|nvidia)[a-z0-9-]*==') > constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf $(VENV)-new

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache
