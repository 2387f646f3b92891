# The C library: `make c-build`, `make c-test`, `make install-c PREFIX=…`. Included by the Makefile at the top.

C := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
C_ROOT := $(C)/../..
# dev or release. What is installed is always release.
C_PROFILE ?= dev
C_LIBRARIES = $(CARGO_TARGET_DIR)/$(if $(filter dev,$(C_PROFILE)),debug,$(C_PROFILE))
C_ABI := $(shell sed -n 's/^\#define POLYLOCK_ABI_VERSION //p' $(C_ROOT)/include/polylock.h)
C_VERSION := $(shell sed -n 's/^\#define POLYLOCK_VERSION "\(.*\)"/\1/p' $(C_ROOT)/include/polylock.h)
C_BUILD := $(CURDIR)/build/c

C_WARNINGS := -Wall -Wextra -Wpedantic -Werror
C_SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
C_LINK = -L$(C_LIBRARIES) -Wl,-rpath,$(C_LIBRARIES) -lpolylock -lpthread
C_EXAMPLES := $(patsubst $(C_ROOT)/examples/c/%.c,%,$(wildcard $(C_ROOT)/examples/c/*.c))
C_TESTS := $(patsubst $(C)/tests/%.c,%,$(wildcard $(C)/tests/*.c))
C_HEADERS = $(wildcard $(C_ROOT)/include/* $(C)/tests/*.h)

.PHONY: c-library
c-library:
	cargo build -p polylock-c --profile $(C_PROFILE)

.PHONY: c-build
c-build: c-library $(C_EXAMPLES:%=$(C_BUILD)/%) ## The C library and its examples, into build/c.

# Against the library in the target directory, which is newer or the same.
$(C_BUILD)/%: $(C_ROOT)/examples/c/%.c $(C_HEADERS) | c-library
	@mkdir -p $(@D)
	$(CC) -std=c99 $(C_WARNINGS) -O2 -g -I$(C_ROOT)/include -o $@ $< $(C_LINK)

$(C_BUILD)/tests/%: $(C)/tests/%.c $(C_HEADERS) | c-library
	@mkdir -p $(@D)
	$(CC) -std=c99 $(C_WARNINGS) -O1 -g $(C_SANITIZE) -I$(C_ROOT)/include -o $@ $< $(C_LINK)

.PHONY: c-test
c-test: c-build $(C_TESTS:%=$(C_BUILD)/tests/%) ## Tests the C library.
	cargo test -p polylock-c
	CC="$(CC)" CXX="$(CXX)" $(C)/tests/run.sh $(C_BUILD) $(C_LIBRARIES)
