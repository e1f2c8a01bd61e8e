# make train   set up, then teach a tiny model arithmetic with GRPO on the CPU (minutes)
# make test    set up, then run the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
SEED ?= 0
# two files of tests at a time; more need more memory and cores. One at a time: make test JOBS=
JOBS ?= -n 2 --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin

.PHONY: train test check format wheel vllm clean help

help:
	@sed -n 's/^# make/make/p' Makefile

train: $(VENV)/core
	$(BIN)/python -m grpo_math.quickstart --seed $(SEED)

test: $(VENV)/dev $(VENV)/vllm
	$(BIN)/python -m pytest $(JOBS) $(PYTEST)

# make check   linter, formatter and type checker, changing nothing
check: $(VENV)/dev $(VENV)/vllm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make format  mend what the linter and the formatter can
format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make wheel   build dist/*.whl
wheel: $(VENV)/dev
	$(BIN)/python -m pip install -q build
	$(BIN)/python -m build --wheel

# make clean   remove the virtual environment, the example's runs and what was built
clean:
	rm -rf $(VENV) runs/quickstart dist build .mypy_cache .ruff_cache .pytest_cache

# torch 2.13.0 by its exact version: where only a CPU build of it is at hand that one is taken, and no CUDA packages come.
# A torch that pyproject.toml allows and that is there already stays.
TORCH ?= torch==2.13.0

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/core: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q '$(TORCH)'
	$(BIN)/python -m pip install -q -e '.[tensorboard,plot]'
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/python -m pip install -q -e '.[dev]'
# one of its dependencies is compiled, which needs Python's headers too; without it its tests say that they are skipped
	$(BIN)/python -m pip install -q -e '.[reasoning-gym]' || echo 'reasoning-gym is left out'
	@touch $@

# make vllm    install vLLM beside the torch that is there, for the CPU or for GPUs
vllm: $(VENV)/vllm

$(VENV)/vllm: launch/install_vllm.sh | $(VENV)/core
	bash launch/install_vllm.sh $(BIN)/python
	@touch $@
