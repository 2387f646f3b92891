#!/usr/bin/env bash
# Installs what the tests need and a fresh Debian lacks. Does nothing where all is there already.
set -euo pipefail

packages=()
need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null || packages+=("$2")
}
need redis-server redis-server
[ -x /usr/lib/postgresql/15/bin/postgres ] || packages+=(postgresql-15)
[ -x /usr/sbin/pgbouncer ] || packages+=(pgbouncer)
need psql postgresql-client-15
need openssl openssl
need ip iproute2
need setpriv util-linux
# It brings a Java of its own.
[ -e /usr/share/java/zookeeper.jar ] || packages+=(zookeeper)
need python3 python3
need gcc gcc
need g++ g++
need make make
need cmake cmake
need valgrind valgrind
need pkg-config pkg-config
[ -e /usr/include/uv.h ] || packages+=(libuv1-dev)
need node nodejs
need npm npm
# Debian splits the part of venv that installs pip from the rest.
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
# The Python package is built against the headers.
python3 -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
    packages+=(python3-dev)

if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "please install: ${packages[*]}" >&2
        exit 1
    fi
    # No server may start by itself: the tests run their own, on ports of their own.
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

# Only its programs: the package would start a server of its own where there is an init.
prometheus=$(dirname "$0")/../build/prometheus
if ! command -v prometheus >/dev/null && [ ! -x "$prometheus/usr/bin/prometheus" ]; then
    mkdir -p "$prometheus"
    (
        cd "$prometheus"
        # The lists are there, unless nothing else was missing on a machine without any.
        apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }
        dpkg-deb -x prometheus_*.deb .
        rm prometheus_*.deb
    )
fi

for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done
