#!/usr/bin/env bash
# Installs the C library: `install.sh DESTDIR PREFIX LIBRARY VERSION ABI`. LIBRARY is the shared one; the static one
# lies beside what it is a link to. DESTDIR is put before every path, and appears in no file.
set -eu
destdir=$1 prefix=$2 library=$(readlink -f "$3") version=$4 abi=$5
here=$(cd "$(dirname "$0")" && pwd)
case $prefix in /*) ;; *) echo "install.sh: PREFIX must be absolute, not $prefix" >&2 && exit 2 ;; esac
include=$destdir$prefix/include lib=$destdir$prefix/lib

install -d "$include" "$lib/pkgconfig" "$lib/cmake/polylock"
install -m 644 "$here"/../../include/polylock.h* "$include"
install -m 644 "$library" "$lib/libpolylock.so.$version"
ln -sf "libpolylock.so.$version" "$lib/libpolylock.so.$abi"
ln -sf "libpolylock.so.$abi" "$lib/libpolylock.so"
install -m 644 "$(dirname "$library")/libpolylock.a" "$lib"
for file in polylock.pc:pkgconfig polylock-config.cmake:cmake/polylock polylock-config-version.cmake:cmake/polylock; do
    name=${file%%:*}
    sed -e "s|@VERSION@|$version|; s|@ABI@|$abi|; s|@PREFIX@|$prefix|" "$here/$name.in" >"$lib/${file#*:}/$name"
done
