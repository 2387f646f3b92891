#!/usr/bin/env bash
# Runs tests of the C library under ThreadSanitizer: `tsan.sh TESTS BUILD`, with the directories of the tests and for the
# results. The library and Rust's standard library are compiled for it, which takes a nightly toolchain.
set -euo pipefail
tests=$1 build=$2
host=$(rustc -vV | sed -n 's/^host: //p')
include=$(cd "$(dirname "$0")/../../include" && pwd)
toolchain=${POLYLOCK_NIGHTLY:-nightly}

RUSTFLAGS='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer' cargo "+$toolchain" build -p polylock-c \
    -Zbuild-std --target "$host" --target-dir "$build/target"
mkdir -p "$build/lib"
cp "$build/target/$host/debug/libpolylock.so" "$build/lib/libpolylock.so.1"
ln -sf libpolylock.so.1 "$build/lib/libpolylock.so"

# One runtime for both languages: Rust's.
runtime=$(echo "$(rustc "+$toolchain" --print sysroot)/lib/rustlib/$host/lib/"librustc-*_rt.tsan.a)
for name in process handles futures lifecycle random; do
    ${CC:-cc} -std=c99 -O1 -g -fsanitize=thread -I"$include" -c -o "$build/$name.o" "$tests/$name.c"
    ${CC:-cc} -rdynamic -o "$build/$name" "$build/$name.o" -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive \
        -L"$build/lib" -Wl,-rpath,"$build/lib" -lpolylock -lpthread -lm -ldl -lrt -lstdc++
    "$build/$name"
done
