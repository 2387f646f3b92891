#!/usr/bin/env bash
# Runs the tests of the C library: `run.sh BUILD`, with the directory of the programs and the library.
# Closes with `c: N passed, N failed`.
set -u
build=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0

# check NAME COMMAND…: one test, or as many as the command counts in its last line.
check() {
    local name=$1 cases
    shift
    if "$@" >"$scratch/output" 2>&1; then
        cases=$(tail -n 1 "$scratch/output" | sed -nE 's/^[a-z_]+: ([0-9]+) passed, 0 failed$/\1/p')
        passed=$((passed + ${cases:-1}))
        echo "ok    $name${cases:+ ($cases cases)}"
    else
        failed=$((failed + 1))
        echo "FAIL  $name"
        sed 's/^/      /' "$scratch/output"
    fi
}

compiles() { # COMPILER… of an empty program that includes a header twice
    printf '#include <%s>\n#include <%s>\nint main(void) { return 0; }\n' "$1" "$1" >"$scratch/header.$2"
    shift 2
    "$@" -Wall -Wextra -Wpedantic -Werror -I"$root/include" -fsyntax-only "$scratch"/header.*
    local status=$?
    rm -f "$scratch"/header.*
    return $status
}

exports_only_ours() {
    local others
    others=$(nm -D --defined-only "$build/lib/libpolylock.so" | awk '{ print $3 }' | grep -v '^polylock_')
    echo "$others"
    [ -z "$others" ]
}

exports_all_of_the_header() {
    grep -oE '\bpolylock_[a-z_]+\(' "$root/include/polylock.h" | tr -d '(' | sort -u >"$scratch/declared"
    nm -D --defined-only "$build/lib/libpolylock.so" | awk '{ print $3 }' | sort -u >"$scratch/exported"
    # What the header only mentions, as a callback type, is no function.
    comm -3 "$scratch/declared" "$scratch/exported" | tee "$scratch/differ"
    [ ! -s "$scratch/differ" ]
}

adds_up() { # URL: two counters at once lose nothing
    printf '0000000000\n' >"$scratch/number"
    : >"$scratch/log"
    "$build/counter" "$1" "$scratch/number" 200 "$scratch/log" >"$scratch/one" &
    local one=$!
    "$build/counter" "$1" "$scratch/number" 200 "$scratch/log" >"$scratch/two" || return 1
    wait $one || return 1
    [ "$(cat "$scratch/number")" = 0000000400 ] && sort -nuc "$scratch/log" && [ "$(wc -l <"$scratch/log")" = 400 ]
}

# Into a place of its own, and then moved from there to where it says that it is.
installs() {
    "${MAKE:-make}" --no-print-directory -C "$root" install-c C_INSTALL_PROFILE=dev PREFIX="$scratch/installed" DESTDIR="$scratch/staged" &&
        mv "$scratch/staged$scratch/installed" "$scratch/installed"
}

soname_is_the_abi() {
    local abi
    abi=$(sed -n 's/^.define POLYLOCK_ABI_VERSION //p' "$root/include/polylock.h")
    readelf -d "$scratch/installed/lib/libpolylock.so" | grep -F "[libpolylock.so.$abi]"
}

pkg_config_serves() {
    export PKG_CONFIG_PATH=$scratch/installed/lib/pkgconfig
    [ "$(pkg-config --modversion polylock)" = "$(sed -n 's/^.define POLYLOCK_VERSION "\(.*\)"/\1/p' "$root/include/polylock.h")" ] &&
        ${CC:-cc} -o "$scratch/consumer" "$root/examples/c/basic.c" $(pkg-config --cflags --libs polylock) &&
        LD_LIBRARY_PATH=$scratch/installed/lib "$scratch/consumer" memory: &&
        ${CC:-cc} -o "$scratch/consumer" "$root/examples/c/basic.c" $(pkg-config --cflags polylock) "$scratch/installed/lib/libpolylock.a" \
            $(pkg-config --libs --static polylock | sed 's/-lpolylock//') && "$scratch/consumer" memory:
}

cmake_serves() {
    cmake -S "$here/consumer" -B "$scratch/cmake" -DCMAKE_PREFIX_PATH="$scratch/installed" -DEXAMPLE="$root/examples/c/basic.c" &&
        cmake --build "$scratch/cmake" && "$scratch/cmake/consumer" memory: && "$scratch/cmake/consumer-static" memory:
}

under_valgrind() { # NAME ARGUMENT…: without the sanitizers, which do not go together with it
    local name=$1 leaks=full
    shift
    [ "$name" != fork ] || leaks=no # a child leaks the objects of its parent
    ${CC:-cc} -std=c99 -g -I"$root/include" -o "$scratch/$name" "$here/$name.c" -L"$build/lib" -Wl,-rpath,"$build/lib" -lpolylock -lpthread &&
        valgrind -q --error-exitcode=9 --leak-check=$leaks --show-leak-kinds=definite --errors-for-leak-kinds=definite "$scratch/$name" "$@"
}

check 'the header is C99' compiles polylock.h c "${CC:-cc}" -std=c99
check 'the header is C++11' compiles polylock.h cpp "${CXX:-c++}" -std=c++11
check 'the C++ header is C++17' compiles polylock.hpp cpp "${CXX:-c++}" -std=c++17
check 'the library exports nothing but polylock_' exports_only_ours
check 'the library exports what the header declares' exports_all_of_the_header
check 'examples/c/basic.c' "$build/basic" memory:
check 'examples/c/poll.c' "$build/poll" memory:
check 'examples/c/uv.c' "$build/uv" memory:
check 'examples/cpp/basic.cpp' "$build/cpp/basic" memory:
check 'make install-c' installs
check 'the library is named by its ABI version' soname_is_the_abi
for tool in pkg-config cmake; do
    if command -v $tool >/dev/null; then
        check "a consumer by $tool" ${tool/-/_}_serves
    else
        echo "skip  a consumer by $tool, which is not there"
    fi
done
for url in ${POLYLOCK_TEST_URLS:-}; do
    case $url in memory:*) continue ;; esac
    check "two counters on ${url%%:*}:" adds_up "$url"
done
for program in "$here"/*.c "$here"/*.cpp; do
    name=$(basename "${program%.*}")
    case $name in
        scenarios | cppscenarios) check "$name" "$build/tests/$name" "$root/tests/scenarios" ;;
        *) check "$name" "$build/tests/$name" ;;
    esac
done
check 'fuzz, for a minute' "$build/tests/fuzz" "$here/../fuzz/corpus" 60
if command -v valgrind >/dev/null; then
    for name in handles lifecycle futures modes log 'fork 3'; do
        check "${name% *} under valgrind" under_valgrind $name
    done
else
    echo 'skip  valgrind, which is not there'
fi
echo "c: $passed passed, $failed failed"
[ "$failed" = 0 ]
