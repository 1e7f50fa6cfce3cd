#!/usr/bin/env bash
# Everything that must hold before a change lands. Runs on a fresh Debian or Ubuntu
# machine with nothing but a Rust toolchain; a tool that is missing is installed by apt.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
    printf '\n== %s (%ss)\n' "$*" "$SECONDS"
}

# A Rust toolchain links with cc; the servers are for the stores that live on one.
install_missing() {
    local missing=()
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    command -v redis-server >/dev/null || missing+=(redis-server)
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
    [ "${#missing[@]}" -eq 0 ] && return
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

step 'what the tests stand on'
install_missing

step 'formatting'
cargo fmt --check

step 'lints, all features, all targets'
cargo clippy --all-features --all-targets -- -D warnings

step 'lints, each feature alone'
for features in '' memory tracing conformance; do
    cargo clippy --no-default-features --features "$features" -- -D warnings
done

step 'tests and doctests, all features'
cargo test --all-features

step 'tests and doctests, default features'
cargo test

step 'benchmarks, once each, as tests'
cargo test --all-features --benches

step 'documentation'
RUSTDOCFLAGS='-D warnings' cargo doc --all-features --no-deps

step 'examples'
cargo build --all-features --examples
cargo run --all-features --example payments
cargo run --all-features --example custom_store

step 'package'
cargo package --allow-dirty

step 'all of it holds'
