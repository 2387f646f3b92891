# `make help` lists what can be made.
SHELL := bash
.DEFAULT_GOAL := help

PYTHON ?= python3
PREFIX ?= /usr/local
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# A download that hangs is tried again after a minute, not after five.
export npm_config_fetch_timeout ?= 60000
SERVERS := $(CURDIR)/tests/servers/with_servers.py

# Each language brings LANGUAGE-build and LANGUAGE-test, C also install-c, the others LANGUAGE-lint.
LANGUAGES := $(patsubst bindings/%/,%,$(dir $(wildcard bindings/*/*.mk)))
include $(foreach language,$(LANGUAGES),bindings/$(language)/$(language).mk)
# They bring OVER_C, the languages of examples/ whose tools are on this machine.
include examples/languages.mk

.PHONY: help
help: ## This list.
	@grep -hE '^[a-z]+(-c)?:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The tests of the engine wait for most of their time.
TEST_THREADS := $(shell echo $$(($$(nproc) * 3 / 2)))

.PHONY: test
test: ## Installs what is missing, checks the code and runs every test in every language.
	tests/install.sh
	$(SERVERS) tests/suite.py \
	    lint="$(MAKE) lint" \
	    rust="RUST_TEST_THREADS=$(TEST_THREADS) cargo test --workspace --no-fail-fast" \
	    simulation="$(MAKE) simulation" \
	    $(foreach language,$(LANGUAGES) $(OVER_C),$(language)="$(MAKE) $(language)-test") \
	    monitoring="$(MAKE) monitoring-test" \
	    together="$(MAKE) together-test" \
	    interop="$(MAKE) interop-test" \
	    faults="$(MAKE) faults-test"

.PHONY: build
build: rust-build $(LANGUAGES:%=%-build) $(OVER_C:%=%-build) ## Builds the libraries and the examples of all languages.

.PHONY: rust-build
rust-build:
	cargo build -p polylock-examples

# The programs that add to one number, as tests/demo/demo.py runs them.
python_COUNTER ?= $(VENV)/bin/python $(CURDIR)/examples/python/counter.py
node_COUNTER ?= node $(CURDIR)/examples/node/counter.js
c_COUNTER ?= $(CURDIR)/build/c/counter
COUNTERS = rust="$(CARGO_TARGET_DIR)/debug/counter" \
    $(foreach language,$(LANGUAGES) $(OVER_C),$(language)="$($(language)_COUNTER)")

.PHONY: demo
demo: ## Four languages add to one number, without and with locks; URL= says where the locks are kept.
	tests/install.sh
	$(MAKE) build
	tests/demo/demo.py $(if $(URL),--url $(URL)) $(COUNTERS)

.PHONY: together-test
together-test: build ## What crosses languages; needs the servers' URLs in the environment.
	tests/together/run.py $(COUNTERS)
	$(call cli_test,$(VENV)/bin/python -m polylock)
	$(call cli_test,node $(CURDIR)/$(NODE_DIR)/dist/cli.js)

# The tests of the command line, on one that a package brings.
cli_test = POLYLOCK_TEST_COMMAND="$(1)" cargo test --quiet -p polylock-cli --test command_line

# The programs that tests/faults/faults.py runs.
FAULT_WORKERS = rust="$(CARGO_TARGET_DIR)/debug/fault-worker" c="$(CURDIR)/build/c/fault-worker" \
    node="node $(CURDIR)/tests/faults/workers/worker.mjs" \
    python="$(VENV)/bin/python $(CURDIR)/tests/faults/workers/worker.py"

.PHONY: fault-workers
fault-workers: build
	cargo build -p polylock-fault-worker
	$(CC) -std=c99 -O2 $(C_FLAGS) -o build/c/fault-worker tests/faults/workers/worker.c $(C_LINK)
	mkdir -p tests/faults/workers/node_modules
	ln -sfn ../../../../$(NODE_DIR) tests/faults/workers/node_modules/polylock

# How long, in all, and how long where it is a part of the tests.
SECONDS ?= 600
FAULT_TEST_SECONDS ?= 40

.PHONY: faults
faults: ## Random faults under workers in four languages, on every backend; SECONDS= says how long.
	tests/install.sh
	$(MAKE) fault-workers
	tests/faults/faults.py --seconds $(SECONDS) --table $(CARGO_TARGET_DIR)/faults.md $(FAULT_WORKERS)

.PHONY: faults-test
faults-test: fault-workers
	tests/faults/test_history.py
	tests/faults/test_mutants.py $(VENV)/bin/python
	tests/faults/faults.py --short --seconds $(FAULT_TEST_SECONDS) $(FAULT_WORKERS)

.PHONY: postgres-long
postgres-long: ## PostgreSQL for longer: 10,000 rounds of giving up as it is granted, 21 of killing the server.
	POLYLOCK_TEST_ROUNDS=100 cargo test -p polylock --test postgres giving_up
	POLYLOCK_TEST_ROUNDS=7 cargo test -p polylock --test postgres crash::

.PHONY: redlock-long
redlock-long: ## Redlock for longer: every mask of failing servers, up to seven of them, but for their order.
	tests/install.sh
	ulimit -n $$(ulimit -Hn); POLYLOCK_TEST_MASKS=1632 cargo test -p polylock --test redis_faults masks:: -- --test-threads=1

# On an engine that is built for speed, in the build that all other tests use.
.PHONY: simulation
simulation: ## Redlock in a simulated world, 21,000 random schedules; POLYLOCK_SEEDS= says how many for each of seven worlds.
	POLYLOCK_SEEDS=$${POLYLOCK_SEEDS:-3000} cargo test -p polylock --lib --config profile.dev.package.polylock.opt-level=2 \
	    backend::redis::simulated

.PHONY: mutants
mutants: ## Makes the mistakes of other lock libraries in ours, one at a time: the tests have to find each.
	POLYLOCK_SEEDS=$${POLYLOCK_SEEDS:-200} tests/mutants.py

# Other libraries' real packages and ours on the same keys; needs the environment of with_servers.py.
INTEROP := $(CURDIR)/build/interop
.PHONY: interop-test
interop-test: node-build python-build
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
	cd tests/interop && npm install --no-package-lock --no-audit --no-fund --silent
	ln -sfn ../../../$(NODE_DIR) tests/interop/node_modules/polylock
	PYTHONPATH=bindings/python/python $(INTEROP)/bin/python tests/interop/interop.py
	node tests/interop/interop.mjs

.PHONY: monitoring-test
monitoring-test: python-build ## The examples of monitoring, with a real Prometheus.
	$(VENV)/bin/python tests/monitoring/monitoring.py $${POLYLOCK_TEST_REDIS:-memory:}

.PHONY: picture
picture: python-build ## Draws docs/dashboard.svg: the dashboard of examples/monitoring, from a real Prometheus; takes some minutes.
	tests/install.sh
	$(VENV)/bin/pip install --quiet --disable-pip-version-check matplotlib==3.11.2
	$(VENV)/bin/python tests/monitoring/picture.py docs/dashboard.svg

# Python outside of the package.
SCRIPTS := tests/*.py tests/*/*.py examples/monitoring/*.py benches/*.py benches/*/*.py

.PHONY: lint
lint: rust-lint scripts-lint $(patsubst %,%-lint,$(filter-out c,$(LANGUAGES))) ## Checks format, warnings and documentation in every language.
	@echo "lint: 1 passed, 0 failed"

.PHONY: rust-lint
rust-lint:
	cargo fmt --all --check
	cargo clippy --workspace --lib --bins --tests -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	tests/licences.py

.PHONY: scripts-lint
scripts-lint: python-build
	$(VENV)/bin/ruff check --config tests/ruff.toml $(SCRIPTS)
	$(VENV)/bin/ruff format --config tests/ruff.toml --check --quiet $(SCRIPTS)
	MYPYPATH=tests/servers:tests/faults:benches/python $(VENV)/bin/mypy --strict $(SCRIPTS)
	tests/deviations.py

# Everything is built for speed, apart from what the tests use.
BENCH := $(CARGO_TARGET_DIR)/bench

.PHONY: bench
bench: ## Compares with the usual libraries; prints a table and writes target/bench/results.json.
	tests/install.sh
	$(MAKE) build C_PROFILE=release NODE_PROFILE=release PYTHON_PROFILE=release
	cargo build --release --manifest-path benches/rust/Cargo.toml
	mkdir -p $(BENCH)
	$(CC) -std=gnu99 -O2 $(C_FLAGS) -o $(BENCH)/c benches/c/bench.c $(C_LINK)
	$(PYTHON) -m venv $(BENCH)/python
	$(BENCH)/python/bin/pip install --quiet --disable-pip-version-check -r benches/python/requirements.txt
	cd benches/node && npm install --no-package-lock --no-audit --no-fund --silent
	$(SERVERS) bash -c 'address=$${POLYLOCK_TEST_REDIS#redis://}; benches/compare.py $(CURDIR)/target/bench/results.json \
	    "$(CARGO_TARGET_DIR)/release/polylock-bench $$POLYLOCK_TEST_REDIS $$POLYLOCK_TEST_REDLOCK" \
	    "$(CARGO_TARGET_DIR)/release/polylock-bench-postgres $$POLYLOCK_TEST_POSTGRES" \
	    "$(CARGO_TARGET_DIR)/release/polylock-bench-abi $(CURDIR)/build/c/lib/libpolylock.so $$POLYLOCK_TEST_REDIS" \
	    "$(BENCH)/c $${address%:*} $${address#*:} core/src/backend/redis/scripts" \
	    "env PYTHONPATH=bindings/python/python $(BENCH)/python/bin/python benches/python/bench.py $$POLYLOCK_TEST_REDIS $$POLYLOCK_TEST_REDLOCK" \
	    "env PYTHONPATH=bindings/python/python $(BENCH)/python/bin/python benches/python/zookeeper.py $$POLYLOCK_TEST_ZOOKEEPER" \
	    "env PYTHONPATH=bindings/python/python $(BENCH)/python/bin/python benches/python/postgres.py $$POLYLOCK_TEST_POSTGRES" \
	    "node benches/node/postgres.mjs $$POLYLOCK_TEST_POSTGRES" \
	    "node benches/node/bench.mjs $$POLYLOCK_TEST_REDIS,$$POLYLOCK_TEST_REDLOCK"'

.PHONY: zookeeper-long
zookeeper-long: ## ZooKeeper for longer: twenty rounds of killed leaders and minorities that are cut off from a ZooKeeper ensemble.
	tests/install.sh
	POLYLOCK_TEST_ROUNDS=20 $(SERVERS) cargo test -p polylock --test zookeeper -- ensemble

.PHONY: clean
clean: ## Removes what was built.
	cargo clean
	rm -rf $(VENV) build bindings/node/node_modules bindings/node/dist
