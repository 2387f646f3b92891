# Languages over the C header: `make go-test`, `make java-test`. Included by the Makefile at the top; each takes part in
# `make test` where its tools are there.

GO := $(or $(shell command -v go),$(wildcard /usr/local/go/bin/go))
# Foreign functions without a preview need JDK 22.
JDK := $(shell for home in "$(JAVA_HOME)" /usr/lib/jvm/*; do \
    version=$$(sed -n 's/^JAVA_VERSION="\([0-9]*\).*/\1/p' "$$home/release" 2>/dev/null); \
    [ -x "$$home/bin/javac" ] && [ "$${version:-0}" -ge 22 ] && echo "$$home" && break; done)
OVER_C := $(if $(GO),go) $(if $(JDK),java)

GO_ENV := CGO_CFLAGS="-I$(CURDIR)/include" CGO_LDFLAGS="-L$(C_BUILD)/lib -Wl,-rpath,$(C_BUILD)/lib"
GO_BUILD := $(CURDIR)/build/go
go_COUNTER ?= $(GO_BUILD)/counter

.PHONY: go-build go-test
go-build: c-library
	mkdir -p $(GO_BUILD)
	cd examples/go && $(GO_ENV) $(GO) build -o $(GO_BUILD)/ ./basic ./counter

go-test: go-build ## Tests the Go example.
	cd examples/go && test -z "$$($(dir $(GO))gofmt -l .)" && $(GO_ENV) $(GO) vet ./...
	cd examples/go && $(GO_ENV) $(GO) test -count=1 -timeout=300s -v . >$(GO_BUILD)/tests.log || { cat $(GO_BUILD)/tests.log; exit 1; }
	@echo "go: $$(grep -cE '^ *--- PASS' $(GO_BUILD)/tests.log) passed, 0 failed"

JAVA_BUILD := $(CURDIR)/build/java
JAVA_RUN := $(JDK)/bin/java -XX:+UseSerialGC -Xmx256m --enable-native-access=ALL-UNNAMED \
    -Dpolylock.library=$(C_BUILD)/lib/libpolylock.so -cp $(JAVA_BUILD)
java_COUNTER ?= $(JAVA_BUILD)/counter

.PHONY: java-build java-test
java-build: c-library $(JAVA_BUILD)/counter

$(JAVA_BUILD)/counter: $(wildcard examples/java/*.java examples/java/*/*.java examples/java/*/*/*.java) examples/languages.mk
	mkdir -p $(JAVA_BUILD)
	$(JDK)/bin/javac -Xlint:all,-restricted,-try -Werror -d $(JAVA_BUILD) $(filter %.java,$^)
	printf '#!/bin/sh\nexec %s Basic "$$@"\n' "$(JAVA_RUN)" >$(JAVA_BUILD)/basic
	printf '#!/bin/sh\nexec %s Counter "$$@"\n' "$(JAVA_RUN)" >$@
	chmod +x $(JAVA_BUILD)/basic $@

java-test: java-build ## Tests the Java example.
	timeout 300 $(JAVA_RUN) polylock.PolylockTest tests/scenarios
