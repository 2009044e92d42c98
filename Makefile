# make run      set up everything needed and build the example packages with a daemon of their own
# make test     set up everything needed, check the code and run the tests
# make vm-test  run the tests that need a whole machine, in a virtual one: takes some twenty minutes; needs root,
#               mmdebstrap and qemu, and keeps the disks that it makes in ~/.cache/buildd-vm
# make chaos    kill and stop the daemon at random moments and at each of its steps, and stop it in every state: is
#               anything lost, built twice or left behind? Takes some twenty minutes; ROUNDS=50 less, SEED=123 again
# make soak     a thousand builds and a hundred at once in one daemon: does anything leak? (takes minutes)
# make inspector  try `buildctl mcp` with the official inspector of the Model Context Protocol; needs npm
# make lint     only check the code
# make bench    run the benchmarks
# make clean    remove everything that these targets made in this directory
#
# Everything goes into .venv and .buildd in this directory. PYTHON=python3.12 chooses the interpreter, and TEST_JOBS=1 how
# many tests run side by side: they wait more than they compute.

PYTHON ?= python3
TEST_JOBS ?= 4
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
METADATA := setup.cfg pyproject.toml
ROUNDS := 200
SEED :=

# scripts that have no .py to be found by
PYTHON_SCRIPTS := examples/run examples/toolchain examples/distfiles/pack
SHELL_SCRIPTS := .ci/run examples/upstream/make-repository examples/upstream/serve
MAN_PAGES = $(wildcard man/*.[1-9])

.PHONY: run test vm-test chaos soak inspector lint bench clean

run: $(VENV)/.installed
	@$(BIN)/python examples/toolchain
	@$(BIN)/python examples/run

test: lint
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

vm-test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -o faulthandler_timeout=1200 tests/vm

chaos: $(VENV)/.installed-test
	BUILDD_CHAOS_ROUNDS=$(ROUNDS) BUILDD_CHAOS_SEED=$(SEED) \
	  $(BIN)/python -m pytest -s -o faulthandler_timeout=3600 tests/chaos

bench: $(VENV)/.installed
	$(BIN)/python -m bench

soak: $(VENV)/.installed-soak
	PYTHONPATH=tests $(BIN)/python -m soak

inspector: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m inspector

lint: $(VENV)/.installed-test
	$(BIN)/ruff check . $(PYTHON_SCRIPTS)
	$(BIN)/ruff format --check . $(PYTHON_SCRIPTS)
	$(BIN)/mypy --strict
	$(BIN)/mypy --strict --scripts-are-modules $(PYTHON_SCRIPTS)
	for script in $(SHELL_SCRIPTS); do bash -n $$script || exit; done
	bash -n ctl/completion/buildctl.bash
	@if command -v zsh >/dev/null; then set -x; zsh -n ctl/completion/buildctl.zsh; \
	else echo "skipped: zsh -n ctl/completion/buildctl.zsh (zsh is not installed)"; fi
	@if command -v fish >/dev/null; then set -x; fish --no-execute ctl/completion/buildctl.fish; \
	else echo "skipped: fish --no-execute ctl/completion/buildctl.fish (fish is not installed)"; fi
	@if command -v mandoc >/dev/null; then set -x; mandoc -T lint -W warning $(MAN_PAGES); \
	else echo "skipped: mandoc -T lint $(MAN_PAGES) (mandoc is not installed)"; fi

clean:
	@if [ -S .buildd/run/control.sock ]; then echo "note: stop the daemon of this checkout first if it still runs"; fi
	rm -rf $(VENV) .buildd *.egg-info build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted set-up starts over and a finished one is not repeated.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "buildd needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(METADATA)
	@echo "installing buildd into $(VENV)"
	@$(PIP) install --config-settings editable_mode=compat -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created $(METADATA)
	@echo "installing buildd and what its tests need into $(VENV)"
	@$(PIP) install --config-settings editable_mode=compat -e ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-soak: $(VENV)/.installed-test
	@echo "installing what the soak draws its picture with into $(VENV)"
	@$(PIP) install --config-settings editable_mode=compat -e ".[test,soak]"
	@touch $@
