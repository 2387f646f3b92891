#!/usr/bin/env bash
# Makes the Debian packages of what install.sh has installed: `package.sh STAGED VERSION ABI OUT`.
# STAGED is the DESTDIR of an installation with PREFIX=/usr; libpolylockABI gets the shared library, libpolylock-dev the rest.
set -eu
staged=$1 version=$2 abi=$3 out=$4
root=$(cd "$(dirname "$0")/../.." && pwd)
architecture=$(dpkg --print-architecture)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

package() { # NAME SECTION DEPENDS DESCRIPTION, of the tree in $scratch/NAME
    local tree=$scratch/$1
    install -d "$tree/DEBIAN" "$tree/usr/share/doc/$1"
    install -m 644 "$root"/LICENSE-* "$tree/usr/share/doc/$1"
    cat >"$tree/DEBIAN/control" <<END
Package: $1
Version: $version
Architecture: $architecture
Section: $2
Priority: optional
Maintainer: The polylock authors <authors@polylock.invalid>
Installed-Size: $(du -sk "$tree/usr" | cut -f1)
Depends: $3
Description: distributed locks on Redis, PostgreSQL, ZooKeeper and files, $4
 With fencing tokens, renewal in the background and a signal of loss. Programs in C, C++, Go, Java,
 Node, Python and Rust exclude each other.
END
    [ "$2" != libs ] || echo 'activate-noawait ldconfig' >"$tree/DEBIAN/triggers"
    dpkg-deb --root-owner-group --build "$tree" "$out/$1_${version}_$architecture.deb"
}

mkdir -p "$out"
install -d "$scratch/libpolylock$abi/usr/lib" "$scratch/libpolylock-dev"
cp -a "$staged/usr" "$scratch/libpolylock-dev"
mv "$scratch"/libpolylock-dev/usr/lib/libpolylock.so.* "$scratch/libpolylock$abi/usr/lib"
# The newest glibc that it asks for.
glibc=$(objdump -T "$scratch/libpolylock$abi/usr/lib/libpolylock.so.$version" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
package "libpolylock$abi" libs "libc6 (>= ${glibc#GLIBC_}), libgcc-s1, ca-certificates" 'shared library'
package libpolylock-dev libdevel "libpolylock$abi (= $version)" 'headers'
