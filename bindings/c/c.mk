# The C library: `make c-build`, `make c-test`, `make install-c PREFIX=…`. Included by the Makefile at the top.

C := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
C_ROOT := $(C)/../..
# The cargo profile that is built and tested; what is installed is release.
C_PROFILE ?= dev
C_INSTALL_PROFILE ?= release
C_CARGO = $(CARGO_TARGET_DIR)/$(if $(filter dev,$(C_PROFILE)),debug,$(C_PROFILE))
C_ABI := $(shell sed -n 's/^.define POLYLOCK_ABI_VERSION //p' $(C_ROOT)/include/polylock.h)
C_VERSION := $(shell sed -n 's/^.define POLYLOCK_VERSION "\(.*\)"/\1/p' $(C_ROOT)/include/polylock.h)
C_BUILD := $(CURDIR)/build/c

C_WARNINGS := -Wall -Wextra -Wpedantic -Werror
C_SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
C_FLAGS := $(C_WARNINGS) -g -I$(C_ROOT)/include
C_LINK := -L$(C_BUILD)/lib -Wl,-rpath,$(C_BUILD)/lib -lpolylock -lpthread
C_HEADERS := $(wildcard $(C_ROOT)/include/*) $(wildcard $(C)/tests/*.h)
C_EXAMPLES := $(patsubst $(C_ROOT)/examples/c/%.c,$(C_BUILD)/%,$(wildcard $(C_ROOT)/examples/c/*.c))
CPP_EXAMPLES := $(patsubst $(C_ROOT)/examples/cpp/%.cpp,$(C_BUILD)/cpp/%,$(wildcard $(C_ROOT)/examples/cpp/*.cpp))
C_TESTS := $(patsubst $(C)/tests/%.c,$(C_BUILD)/tests/%,$(wildcard $(C)/tests/*.c)) \
    $(patsubst $(C)/tests/%.cpp,$(C_BUILD)/tests/%,$(wildcard $(C)/tests/*.cpp)) $(C_BUILD)/tests/fuzz

.PHONY: c-library
c-library:
	cargo build -p polylock-c --profile $(C_PROFILE)
	@mkdir -p $(C_BUILD)/lib $(C_BUILD)/tests $(C_BUILD)/cpp
	@ln -sf $(C_CARGO)/libpolylock.so $(C_BUILD)/lib/libpolylock.so.$(C_ABI)
	@ln -sf libpolylock.so.$(C_ABI) $(C_BUILD)/lib/libpolylock.so

.PHONY: c-build
c-build: c-library $(C_EXAMPLES) $(CPP_EXAMPLES) ## The C library and its examples, into build/c.

$(C_BUILD)/uv: C_LIBRARIES := -luv
$(C_BUILD)/%: $(C_ROOT)/examples/c/%.c $(C_HEADERS) | c-library
	$(CC) -std=c99 -O2 $(C_FLAGS) -o $@ $< $(C_LINK) $(C_LIBRARIES)

$(C_BUILD)/cpp/%: $(C_ROOT)/examples/cpp/%.cpp $(C_HEADERS) | c-library
	$(CXX) -std=c++17 -O2 $(C_FLAGS) -o $@ $< $(C_LINK)

# Forks and small stacks, which the sanitizers cannot stand: see there.
$(C_BUILD)/tests/fork $(C_BUILD)/tests/stack: C_SANITIZE :=
$(C_BUILD)/tests/stack: C_FLAGS += -DSTACK_KIB=$(if $(filter dev,$(C_PROFILE)),256,48)
$(C_BUILD)/tests/%: $(C)/tests/%.c $(C_HEADERS) | c-library
	$(CC) -std=c99 -O1 $(C_FLAGS) $(C_SANITIZE) -o $@ $< $(C_LINK)

$(C_BUILD)/tests/%: $(C)/tests/%.cpp $(C_HEADERS) | c-library
	$(CXX) -std=c++17 -O1 $(C_FLAGS) $(C_SANITIZE) -o $@ $< $(C_LINK)

$(C_BUILD)/tests/fuzz: $(C)/fuzz/fuzz.c $(C_HEADERS) | c-library
	$(CC) -std=c99 -O1 -DREPLAY $(C_FLAGS) $(C_SANITIZE) -o $@ $< $(C_LINK)

# How long the fuzzing takes, in seconds.
FUZZ ?= 600
.PHONY: c-fuzz
c-fuzz: c-library $(C_BUILD)/tests/fuzz ## Fuzzes the whole C API: FUZZ=600 seconds of it.
	$(C_BUILD)/tests/fuzz $(C)/fuzz/corpus $(FUZZ)

.PHONY: c-test
c-test: c-build $(C_TESTS) ## Tests the C library.
	CC="$(CC)" CXX="$(CXX)" MAKE="$(MAKE)" $(C)/tests/run.sh $(C_BUILD)

# These take a nightly toolchain with the components miri and rust-src.
.PHONY: c-miri
c-miri: ## Runs the unit tests of the C library, which are those of its unsafe code, under Miri.
	cargo +nightly miri test -p polylock-c --lib

.PHONY: c-tsan
c-tsan: ## Runs tests of the C library under ThreadSanitizer, with a Redis.
	$(CURDIR)/tests/servers/with_servers.py $(C)/tsan.sh $(C)/tests $(C_BUILD)/tsan

.PHONY: install-c
install-c: ## Installs the C library with its headers, for pkg-config and CMake, below PREFIX (and DESTDIR).
	$(MAKE) c-library C_PROFILE=$(C_INSTALL_PROFILE)
	$(C)/install.sh "$(DESTDIR)" "$(PREFIX)" $(C_BUILD)/lib/libpolylock.so.$(C_ABI) $(C_VERSION) $(C_ABI)

.PHONY: deb-c
deb-c: ## Makes Debian packages of the C library, into build/deb.
	rm -rf $(CURDIR)/build/deb
	$(MAKE) install-c PREFIX=/usr DESTDIR=$(CURDIR)/build/deb/staged
	$(C)/package.sh $(CURDIR)/build/deb/staged $(C_VERSION) $(C_ABI) $(CURDIR)/build/deb
