PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
SOURCES := setup.py pyproject.toml README.md LICENSE \
	$(wildcard conduit/*.py conduit/*/*.py conduit/*.pyi conduit/*.pyx conduit/*.pxd conduit/*.h)

# A virtual environment that was moved, or whose Python is gone, is made again.
ifneq ($(shell $(PY) -c "import sys; print(sys.prefix)" 2>/dev/null),$(CURDIR)/$(VENV))
$(shell rm -f $(VENV)/.made)
endif

# tox looks for interpreters on the PATH; those that pyenv keeps are not there by version.
PYENV_ROOT ?= $(HOME)/.pyenv
PYENV_BINS := $(wildcard $(PYENV_ROOT)/versions/3.1[1-9]*/bin)
comma := ,
empty :=
space := $(empty) $(empty)
more_path := $(subst $(space),,$(patsubst %,:%,$(PYENV_BINS)))

CHECKS = PATH="$$PATH$(more_path)" $(PY) tools/checks.py
# What `make test` leaves out: the other Pythons, and all that takes longer.
ALL := py311 py312 py313 py314 py315 py313t py314t py315t \
	coverage sanitize portable tsan long package cross docs
AT_HAND = $(shell $(PY) tools/checks.py --at-hand)
OTHERS = $(subst $(space),$(comma),$(filter-out $(AT_HAND),$(ALL)))

.PHONY: help demo test check test-all bench docs wheels cross clean

help:
	@echo "make demo      move a file, a connection and a listener to another process"
	@echo "make test      the tests on this Python, the types, the style of the sources"
	@echo "make bench     how fast it is, beside the alternatives"
	@echo "make check     for work on conduit: build what changed, run the quick tests"
	@echo "make test-all  what make test leaves out: other Pythons, coverage, sanitizers, ..."
	@echo "make docs      the documentation as a site"
	@echo "make wheels    a wheel for each Python found, checked"
	@echo "make cross     compile for other systems"
	@echo "make clean     remove what these made"

demo: $(VENV)/.package
	@$(PY) examples/demo/sender.py

# Others than these by ENVS=py312,coverage. What follows a "--" in TOX_ARGS goes to pytest.
ENVS := py,types,lint
test: $(VENV)/.dev
	@$(CHECKS) $(ENVS) $(TOX_ARGS)

test-all: $(VENV)/.dev
	@$(CHECKS) $(OTHERS) $(TOX_ARGS)

# Without optimisation: the compiler takes a third of the time.
check: $(VENV)/.inplace
	@CFLAGS="$$CFLAGS -O0" $(PY) setup.py --quiet build_ext --inplace
	@PYTHONPATH="$(CURDIR)" $(PY) -m pytest --numprocesses=2 \
		-m "not slow and not package and not long and not site" $(PYTEST_ARGS)

bench: $(VENV)/.package $(VENV)/.bench
	@$(PY) benchmarks/bench.py

docs: $(VENV)/.package $(VENV)/.docs
	@$(VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	@echo "look at build/docs/index.html"

wheels: $(VENV)/.wheels
	@PATH="$$PATH$(more_path)" $(PY) tools/wheels.py

cross: $(VENV)/.cross
	@$(PY) tools/cross.py

clean:
	rm -rf $(VENV) .tox build dist *.egg-info conduit/*.c conduit/*.so benchmarks/floor
	rm -rf .mypy_cache .pytest_cache .ruff_cache .coverage* htmlcov
	find . -name __pycache__ -prune -exec rm -rf {} +

# The pip that a Debian brings is too old to know dependency groups.
$(VENV)/.made:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@

# With the build's requirements here, a change to the sources needs no network.
$(VENV)/.package: $(VENV)/.build $(SOURCES)
	$(PIP) install --force-reinstall --no-deps --no-build-isolation .
	@touch $@

$(addprefix $(VENV)/.,build dev inplace bench docs wheels cross): $(VENV)/.%: $(VENV)/.made pyproject.toml
	$(PIP) install --group $*
	@touch $@
