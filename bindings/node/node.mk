# The Node package: included by the top Makefile.

NODE_DIR := bindings/node
NODE_INSTALLED := $(NODE_DIR)/node_modules/.installed
# How the addon is built for tests and the demo; `npm install` builds a release.
NODE_PROFILE ?= dev
node_COUNTER ?= node $(CURDIR)/examples/node/counter.mjs

.PHONY: node-build
node-build: $(NODE_INSTALLED)
	POLYLOCK_PROFILE=$(NODE_PROFILE) node $(NODE_DIR)/scripts/build.mjs
	mkdir -p examples/node/node_modules
	ln -sfn ../../../$(NODE_DIR) examples/node/node_modules/polylock
	for package in @types express fastify ioredis; do \
	    ln -sfn ../../../$(NODE_DIR)/node_modules/$$package examples/node/node_modules/$$package; \
	done

$(NODE_INSTALLED): $(NODE_DIR)/package.json $(NODE_DIR)/package-lock.json
	cd $(NODE_DIR) && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

.PHONY: node-test
node-test: node-build ## Runs the tests of the Node package.
	cd $(NODE_DIR) && node --expose-gc --test --test-concurrency=2 --test-timeout=600000 tests/*.test.mjs

# The newest of each major version, from the registry, with the addon that was built.
NODE_VERSIONS ?= 18 20 22 24
.PHONY: node-versions
node-versions: node-build ## The tests of the Node package on each version of Node, and the examples on Bun; fetches them.
	for version in $(NODE_VERSIONS); do \
	    npm install --silent --no-save --prefix build/node/$$version node@$$version || exit; \
	    PATH="$(CURDIR)/build/node/$$version/node_modules/node/bin:$$PATH" $(SERVERS) sh -c \
	        'echo "Node $$(node --version)" && cd $(NODE_DIR) && node --expose-gc --test --test-concurrency=2 tests/*.test.mjs' \
	        || exit; \
	done
	npm install --silent --no-save --prefix build/node/bun bun
	POLYLOCK_TEST_RUNTIME=$(CURDIR)/build/node/bun/node_modules/.bin/bun $(SERVERS) node --test $(NODE_DIR)/tests/examples.test.mjs

# The same tests, longer, on a Redis: every ending of a process 200 times, 100,000 pairs, 10,000 aborted acquires.
.PHONY: node-long
node-long: node-build ## The endings of a process 200 times each, and 100,000 pairs in flat memory: Node, on a Redis.
	POLYLOCK_TEST_RUNS=200 POLYLOCK_TEST_PAIRS=100000 POLYLOCK_TEST_ABORTED=10000 $(SERVERS) sh -c 'cd $(NODE_DIR) && \
	    POLYLOCK_TEST_URLS="$$POLYLOCK_TEST_REDIS" node --expose-gc --test tests/process.test.mjs tests/memory.test.mjs'

.PHONY: node-lint
node-lint: node-build
	cd $(NODE_DIR) && npm run --silent typecheck && npx tsc -p ../../examples/node && npm run --silent format:check
