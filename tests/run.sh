#!/usr/bin/env bash
# Everything that must hold before a change lands. Runs on a fresh Debian or Ubuntu
# machine with nothing but a Rust toolchain; a tool that is missing is installed by apt.
set -euo pipefail
cd "$(dirname "$0")/.."
# Nothing is built twice here, and what could be built on would take tens of gigabytes.
export CARGO_INCREMENTAL=0

step() {
    printf '\n== %s (%ss)\n' "$*" "$SECONDS"
}

# A Rust toolchain links with cc; the servers are for the stores that live on one.
install_missing() {
    local missing=()
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    command -v redis-server >/dev/null || missing+=(redis-server)
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
    [ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null || missing+=(pgbouncer)
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
for features in '' memory tracing conformance redis postgres sqlite; do
    cargo clippy --no-default-features --features "$features" -- -D warnings
done

step 'tests and doctests, all features'
cargo test --all-features

shared=()
for file in $(grep -lE 'support::(stores|testbed)' tests/*.rs | grep -v testbed_redis); do
    shared+=(--test "$(basename "$file" .rs)")
done
for store in redis postgres sqlite; do
    step "behaviour tests over $store"
    IDEMPOTENCY_TEST_STORE=$store cargo test --all-features "${shared[@]}"
done

step 'tests and doctests, default features'
cargo test

step 'benchmarks, once each, as tests'
cargo test --all-features --benches

step 'documentation'
RUSTDOCFLAGS='-D warnings' cargo doc --all-features --no-deps

# A private server on a free port, which ends with this script.
start_redis() {
    redis_directory=$(mktemp -d)
    redis_process=
    trap stop_redis EXIT
    for redis_port in $(shuf -i 12000-21999 -n 20); do
        redis-server --bind 127.0.0.1 --port "$redis_port" --dir "$redis_directory" \
            --save '' --appendonly yes >"$redis_directory/log" 2>&1 &
        redis_process=$!
        for _ in {1..200}; do
            # Somebody else's server may have the port.
            redis-cli -p "$redis_port" info server 2>/dev/null |
                grep "^process_id:$redis_process[^0-9]" >/dev/null && return
            kill -0 "$redis_process" 2>/dev/null || continue 2
            sleep 0.05
        done
        break
    done
    cat "$redis_directory/log"
    return 1
}

stop_redis() {
    kill $redis_process && wait $redis_process || true
    rm -rf "$redis_directory"
}

step 'examples'
cargo build --all-features --examples
cargo run --all-features --example payments
cargo run --all-features --example custom_store
cargo run --all-features --example exactly_once
sqlite_directory=$(mktemp -d)
for _ in 1 2; do
    cargo run --all-features --example payments -- "sqlite:$sqlite_directory/payments.db"
done
rm -rf "$sqlite_directory"
start_redis
# Twice: what the first run leaves on the server must not disturb the second.
for _ in 1 2; do
    cargo run --all-features --example payments -- "redis://127.0.0.1:$redis_port"
done
cargo run --all-features --example redis_cluster_nodes -- "redis://127.0.0.1:$redis_port"

step 'package'
cargo package --allow-dirty

step 'all of it holds'
