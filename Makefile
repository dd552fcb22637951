# Everything runs from a fresh clone: `make test`, `make demo`, `make bench`. `make setup` is quick when nothing changed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BLOB := migrate/pie/blob.bin
# Two hosts on one machine are namespaces, and making those takes root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: setup packages kernels check test test-ops test-kernels test-within-kernels fuzz chaos demo vagrant-demo bench clean

setup: packages $(VENV)/installed $(BLOB)

packages:
	@.ci/provision

$(VENV)/installed: pyproject.toml
	@.ci/provision
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(BLOB): $(wildcard migrate/pie/*.c migrate/pie/*.h migrate/pie/*.S migrate/pie/*.lds) migrate/pie/build.py | $(VENV)/installed
	$(BIN)/python -m migrate.pie.build
	@touch $@

# Debian's kernels, which the tests across kernels boot; they fetch them themselves where nobody has.
kernels: setup
	$(AS_ROOT) $(BIN)/python -m tests.crosskernel.kernels

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two files at a time: most tests wait more than they compute, for hosts, guests and connections.
test: check
	$(AS_ROOT) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not every_kernel and not every_op and not within_kernels" --durations=20 $(PYTEST_ARGS)

test-ops: setup
	$(AS_ROOT) $(BIN)/python -m pytest tests/migration -m every_op $(PYTEST_ARGS)

test-kernels: kernels
	$(AS_ROOT) $(BIN)/python -m pytest tests/crosskernel -m every_kernel $(PYTEST_ARGS)

test-within-kernels: kernels
	$(AS_ROOT) $(BIN)/python -m pytest tests/crosskernel -m within_kernels $(PYTEST_ARGS)

# What is fed with hostile bytes, and for how many seconds each; findings are left in fuzz/
FUZZ_TARGETS ?= agent decoder preview layout image
FUZZ_SECONDS ?= 60

fuzz: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	for target in $(FUZZ_TARGETS); do $(AS_ROOT) $(BIN)/python -m tests.fuzz $$target $(FUZZ_SECONDS) || exit 1; done

# At random moments of so many moves something dies, is cut off or runs out; CHAOS_SEED=… repeats what was drawn.
CHAOS_MOVES ?= 1000

chaos: setup
	$(AS_ROOT) env CHAOS_MOVES=$(CHAOS_MOVES) CHAOS_SEED=$(CHAOS_SEED) $(BIN)/python -m tests.chaos

demo: setup
	$(AS_ROOT) $(BIN)/python -m tests.demo

# BOX=debian/bookworm64 for a public box, which needs a running libvirt
vagrant-demo: setup
	$(AS_ROOT) $(BIN)/python -m vagrant.demo $(if $(BOX),--box $(BOX))

bench: setup
	$(AS_ROOT) $(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(BLOB) fuzz *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
