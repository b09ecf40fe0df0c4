#!/bin/bash
# Connections per second, each with a ClientHello: without rules, and with a rule by name, so that each name is checked.
# Needs root, iproute2, dnsmasq and dig. Usage: bench/hello.sh PASTA [SECONDS [ROUNDS]]
set -euo pipefail
pasta=$(realpath "$1")
seconds=${2:-2}
rounds=${3:-5}
cd "$(dirname "$0")/.."
cargo build --quiet --release -p xtask
load=$(realpath "${CARGO_TARGET_DIR:-target}/release/xtask")
host=hellohost$$ peer=hellopeer$$
dir=$(mktemp -d)
clean() {
    [ ! -e "$dir/pid" ] || kill "$(cat "$dir/pid")" || true
    exec 3>&- || true
    ip netns del "$host" 2>/dev/null || true
    ip netns del "$peer" 2>/dev/null || true
    rm -rf "$dir"
}
trap clean EXIT
ip netns add "$host"
ip netns add "$peer"
in_host() { ip netns exec "$host" "$@"; }
in_peer() { ip netns exec "$peer" "$@"; }
ip link add host0 netns "$host" type veth peer name peer0 netns "$peer"
in_host ip link set lo up
in_host ip address add 198.51.100.1/24 dev host0
in_host ip link set host0 up
in_peer ip address add 198.51.100.2/24 dev peer0
in_peer ip link set peer0 up
# The server is behind the gateway: the gateway's own address leads to the host.
in_peer ip address add 203.0.113.1/32 dev peer0
in_host ip route add default via 198.51.100.2 dev host0

printf 'no-resolv\nno-hosts\nlisten-address=198.51.100.1\nbind-interfaces\naddress=/bench.example/203.0.113.1\n' >"$dir/conf"
in_host dnsmasq -C "$dir/conf" -k -x "$dir/pid" 2>/dev/null &
# The server ends with its standard input.
mkfifo "$dir/end"
in_peer "$load" load serve 443 <"$dir/end" >"$dir/server" &
exec 3>"$dir/end"
until [ -s "$dir/server" ]; do sleep 0.1; done

median() { sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
for _ in $(seq "$rounds"); do
    for what in plain names; do
        rules=()
        [ $what = plain ] || rules=(--allow bench.example:443)
        # shellcheck disable=SC2016
        rate=$(in_host "$pasta" --config-net --dns-forward 192.0.2.53 --dns-host 198.51.100.1 "${rules[@]}" -- \
            sh -c 'dig +short @192.0.2.53 bench.example >&2; exec "$1" load hello 203.0.113.1 443 "$2"' \
            sh "$load" "$seconds" 2>/dev/null </dev/null)
        echo "$what: $rate connections/s"
        echo "$rate" >>"$dir/$what"
    done
done
names=$(median <"$dir/names") plain=$(median <"$dir/plain")
awk -v names="$names" -v plain="$plain" 'BEGIN { printf "names/plain %.2f\n", names / plain }'
