#!/bin/bash
# Throughput of two programs with the command line of slirp4netns, from the guest to a server on the host's loopback (up) and
# back (down), at MTU 1500 and 65520. Needs root, iproute2 and util-linux. The programs take turns in each round.
# Usage: bench/slirp4netns.sh A B [SECONDS [ROUNDS]]
set -euo pipefail
programs=("$(realpath "$1")" "$(realpath "$2")")
seconds=${3:-2}
rounds=${4:-3}
cd "$(dirname "$0")/.."
load=$(realpath "${CARGO_TARGET_DIR:-target}/release/xtask")
[ -x "$load" ] || { echo "run first: cargo build --release -p xtask" >&2; exit 1; }
host=slirphost$$
dir=$(mktemp -d)
clean() {
    exec 3>&- || true
    jobs -p | xargs -r kill 2>/dev/null || true
    ip netns del "$host" 2>/dev/null || true
    rm -rf "$dir"
}
trap clean EXIT
ip netns add "$host"
in_host() { ip netns exec "$host" "$@"; }
in_host ip link set lo up
# The server ends with its standard input.
mkfifo "$dir/end"
in_host "$load" load serve 7000 <"$dir/end" >"$dir/server" &
exec 3>"$dir/end"
until [ -s "$dir/server" ]; do sleep 0.1; done

for program in "${programs[@]}"; do
    echo "$program: $("$program" --version 2>&1 | head -1)"
done
# One measurement: Gbit/s.
measure() {
    local program=$1 mtu=$2 direction=$3 guest slirp rate
    # `exec`, so that $! is the process itself.
    (exec ip netns exec "$host" unshare --net sleep 1000 3>&-) &
    guest=$!
    mkfifo "$dir/ready"
    # The namespace exists when it differs from the host's.
    until [ "$(readlink "/proc/$guest/ns/net")" != "$(in_host readlink /proc/self/ns/net)" ]; do sleep 0.02; done
    (exec ip netns exec "$host" "$program" --configure --mtu="$mtu" --ready-fd=4 "$guest" tap0 \
        4>"$dir/ready" 3>&- >"$dir/log" 2>&1) &
    slirp=$!
    read -r -n 1 _ <"$dir/ready"
    rm "$dir/ready"
    rate=$(nsenter --net="/proc/$guest/ns/net" "$load" load "$direction" 10.0.2.2 7000 "$seconds" </dev/null 3>&-)
    kill "$slirp" "$guest"
    wait "$slirp" "$guest" 2>/dev/null || true
    awk -v rate="$rate" 'BEGIN { printf "%.2f\n", rate * 8 / 1e9 }'
}
median() { sort -g "$1" | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

for mtu in 1500 65520; do
    for direction in up down; do
        for _ in $(seq "$rounds"); do
            for index in 0 1; do measure "${programs[$index]}" "$mtu" "$direction" >>"$dir/$mtu-$direction-$index"; done
        done
        a=$dir/$mtu-$direction-0 b=$dir/$mtu-$direction-1
        echo "MTU $mtu, $direction, Gbit/s: A $(median "$a") ($(paste -sd' ' "$a")), B $(median "$b") ($(paste -sd' ' "$b")); B/A" \
            "$(awk -v a="$(median "$a")" -v b="$(median "$b")" 'BEGIN { printf "%.1f", b / a }')"
    done
done
