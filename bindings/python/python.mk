# The Python package: python-build, python-test, python-lint. Included by the Makefile at the root.

PYTHON ?= python3
# How the module is built for tests and the demo; `pip install` builds a release.
PYTHON_PROFILE ?= dev
VENV ?= $(CURDIR)/.venv
VENV_TOOLS := $(VENV)/.polylock-tools
PYTHON_TOOLS := bindings/python/requirements-dev.txt

$(VENV_TOOLS): $(PYTHON_TOOLS)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $(PYTHON_TOOLS)
	touch $@

.PHONY: python-venv python-build python-test python-lint

# The tools alone, without the package.
python-venv: $(VENV_TOOLS)

# Cargo knows better than make what has changed.
python-build: $(VENV_TOOLS)
	cd bindings/python && VIRTUAL_ENV=$(VENV) $(VENV)/bin/maturin develop --quiet --profile $(PYTHON_PROFILE)

# Most tests wait most of the time: more of them run at once than there are processors. Where the servers are is in
# the environment: run it by tests/servers/with_servers.py to have more than memory:.
python-test: python-build
	$(VENV)/bin/python -m pytest -n 4 -c bindings/python/pyproject.toml --rootdir bindings/python bindings/python/tests

python-lint: python-build
	$(VENV)/bin/ruff check --quiet bindings/python
	$(VENV)/bin/ruff format --quiet --check bindings/python
	$(VENV)/bin/ruff check --quiet --config bindings/python/pyproject.toml --extend-ignore PLR2004 examples/python
	$(VENV)/bin/ruff format --quiet --config bindings/python/pyproject.toml --check examples/python
	cd bindings/python && $(VENV)/bin/mypy
	cd bindings/python && $(VENV)/bin/pyright --pythonpath $(VENV)/bin/python python
	cd bindings/python && $(VENV)/bin/python -m mypy.stubtest --concise polylock._native

# What a release is: the source distribution, a wheel made from it, and that wheel in fresh environments of PYTHONS.
PYTHONS ?= $(PYTHON)
.PHONY: python-package
python-package: $(VENV_TOOLS)
	$(VENV)/bin/python bindings/python/tests/wheel.py $(CURDIR)/build/python $(PYTHONS)

# The same tests, longer, on a Redis: every ending of a process 200 times, 100,000 pairs, 10,000 cancelled acquires.
.PHONY: python-long
python-long: python-build ## The endings of a process 200 times each, and 100,000 pairs in flat memory: Python, on a Redis.
	POLYLOCK_TEST_RUNS=200 POLYLOCK_TEST_PAIRS=100000 POLYLOCK_TEST_CANCELLED=10000 $(SERVERS) sh -c \
	    'POLYLOCK_TEST_URLS="$$POLYLOCK_TEST_REDIS" $(VENV)/bin/python -m pytest -n 4 -c bindings/python/pyproject.toml \
	    --rootdir bindings/python --timeout 7200 bindings/python/tests/test_process.py bindings/python/tests/test_memory.py'
