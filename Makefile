PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
SOURCES := setup.py pyproject.toml README.md LICENSE \
	$(wildcard conduit/*.py conduit/*.pyi conduit/*.pyx conduit/*.pxd conduit/*.h)

# A virtual environment that was moved, or whose Python is gone, is made anew.
ifneq ($(shell $(PY) -c "import sys; print(sys.prefix)" 2>/dev/null),$(CURDIR)/$(VENV))
$(shell rm -f $(VENV)/.made)
endif

# tox looks for interpreters on the PATH; those that pyenv keeps are not there by version.
PYENV_ROOT ?= $(HOME)/.pyenv
PYENV_BINS := $(wildcard $(PYENV_ROOT)/versions/3.1[1-9]*/bin)
empty :=
space := $(empty) $(empty)
TOX_PATH := $(subst $(space),:,$(strip $(PYENV_BINS)))

.PHONY: help demo test bench clean

help:
	@echo "make demo    move a file, a connection and a listener to another process"
	@echo "make test    the tests on every Python that is here, packaging, types, lint"
	@echo "make bench   how fast it is, beside the alternatives"
	@echo "make clean   remove what these made"

demo: $(VENV)/.package
	@$(PY) examples/demo/sender.py

test: $(VENV)/.dev
	@PATH="$$PATH:$(TOX_PATH)" $(PY) -m tox run-parallel $(TOX_ARGS)

bench: $(VENV)/.package $(VENV)/.bench
	@$(PY) benchmarks/bench.py

clean:
	rm -rf $(VENV) .tox build dist *.egg-info conduit/*.c conduit/*.so benchmarks/floor
	rm -rf .mypy_cache .pytest_cache .ruff_cache .coverage* htmlcov
	find . -name __pycache__ -prune -exec rm -rf {} +

# The pip that a Debian brings is too old to know dependency groups.
$(VENV)/.made:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.package: $(VENV)/.made $(SOURCES)
	$(PIP) install --force-reinstall --no-deps .
	@touch $@

$(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(VENV)/.made pyproject.toml
	$(PIP) install --group $*
	@touch $@
