# Every target works from a fresh clone with Python 3.10+, git and make; each sets up what it needs in .venv, once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check fuzz faults load simulate arm64 sbom bench wheel clean

help: ## Say what can be made
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="..." passes options on: make demo ARGS="--seconds 20 --no-browser", make test ARGS="tests/codec -x"'

demo: $(VENV)/.demo ## Camera, broker, server and page on this machine, on a rendered street
	$(BIN)/scene-edge demo $(ARGS)

test: $(VENV)/.dev ## The whole test suite
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run firmware_scripts/*.sh; \
	else echo "shellcheck is not installed: the shell scripts are not checked"; fi

fuzz: $(VENV)/.dev ## Ten million mutants through every parser, and a page of what came of it (20 minutes of a core)
	$(BIN)/python -m tests.fuzz $(ARGS)
	$(BIN)/python -m tests.fuzz.bombs

bench: $(VENV)/.dev ## Bitrate against accuracy on the development clips (hours; see benchmarks/)
	$(BIN)/python -m benchmarks.rate_accuracy $(ARGS)

faults: $(VENV)/.dev ## Kill broker, server and workers, break the line, turn the clock, damage the spool everywhere (20 minutes)
	$(BIN)/python -m tests.faults $(ARGS)
	SCENE_EDGE_TEST_EVERYTHING=1 $(BIN)/python -m pytest -q --timeout 1800 tests/edge/test_spool_file.py

load: $(VENV)/.dev ## A thousand cameras, a broker that comes back, backlogs, one that is hot: what a server bears (10 minutes)
	$(BIN)/python -m tests.load $(ARGS)

simulate: $(VENV)/.dev ## 1,000 seeds of camera, broker and server in one process, under harm (six minutes of two cores)
	$(BIN)/python -m tests.simulation $(ARGS)

arm64: $(BIN)/python ## Golden bytes and shipped networks on ARM, in QEMU's user mode, with Debian's packages
	$(BIN)/python -m tests.arm64 $(ARGS)

sbom: $(VENV)/.dev ## What a camera is made of, as CycloneDX JSON: dist/sbom.cdx.json
	@mkdir -p dist
	$(BIN)/python -m scene_edge.sbom --extra openvino >dist/sbom.cdx.json

wheel: $(VENV)/.dev ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build

clean: ## Remove .venv, builds and caches
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no python3.11 or python3 on the PATH; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "make: $(PYTHON) is older than 3.10; name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# The exact version of torch takes a CPU build from any index that holds one; plain PyPI's x86-64 wheel brings CUDA. To
# avoid that, export PIP_EXTRA_INDEX_URL with the address of PyTorch's CPU wheels before the first `make test`.
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing the development tools into $(VENV), once: about 2.3 GB, mostly torch and inference engines"
	$(PIP) install torch==2.13.0 --editable '.[dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "installing camera, server and broker into $(VENV), once: about 1 GB"
	$(PIP) install --editable '.[demo]'
	@touch $@
