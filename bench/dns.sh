#!/bin/bash
# Questions per second and latency of DNS through pasta: plain forwarding, and rules by name.
# Needs root, iproute2, dnsmasq and dnsperf. Usage: bench/dns.sh PASTA [SECONDS [ROUNDS]]
set -euo pipefail
pasta=$(realpath "$1")
seconds=${2:-3}
rounds=${3:-5}
ns=dnsbench$$
dir=$(mktemp -d)
clean() {
    [ ! -e "$dir/pid" ] || kill "$(cat "$dir/pid")" || true
    ip netns del "$ns" 2>/dev/null || true
    rm -rf "$dir"
}
trap clean EXIT
ip netns add "$ns"
in_ns() { ip netns exec "$ns" "$@"; }
in_ns ip link set lo up
in_ns ip link add host0 type veth peer name host1
in_ns ip address add 198.51.100.1/24 dev host0
in_ns ip link set host1 up
in_ns ip link set host0 up
in_ns ip route add default via 198.51.100.254 dev host0

# Each address has four names, as on a host of several sites.
for name in {1..1000}; do echo "203.0.113.$((name % 250 + 1)) n$name.bench.example"; done >"$dir/hosts"
printf 'no-resolv\nno-hosts\naddn-hosts=%s\nlisten-address=198.51.100.1\nbind-interfaces\n' "$dir/hosts" >"$dir/conf"
chmod -R a+rX "$dir"
in_ns dnsmasq -C "$dir/conf" -k -x "$dir/pid" 2>/dev/null &
for name in {1..1000}; do echo "n$name.bench.example A"; done >"$dir/questions"
: >"$dir/rules"
for number in {0..998}; do echo "allow *.n$number.example:443"; done >>"$dir/rules"
echo 'allow *.bench.example:443' >>"$dir/rules"

median() { sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
ask() {
    in_ns "$pasta" --config-net --dns-forward 192.0.2.53 --dns-host 198.51.100.1 "${rules[@]}" -- \
        dnsperf -s 192.0.2.53 -d "$dir/questions" -l "$seconds" "$@" 2>/dev/null
}
# Two lines of results for each round: questions per second at full load; the median time of one question at a time.
for _ in $(seq "$rounds"); do
    for what in plain names; do
        rules=()
        [ $what = plain ] || rules=(--policy "$dir/rules")
        rate=$(ask -q 64 | sed -n 's/.*Queries per second: *//p')
        time=$(ask -q 1 -v | awk '/^> NOERROR/ { print $NF }' | median)
        echo "$what: $rate questions/s, median $time s"
        echo "$rate" >>"$dir/$what.rate"
        echo "$time" >>"$dir/$what.time"
    done
done
for what in rate time; do
    names=$(median <"$dir/names.$what") plain=$(median <"$dir/plain.$what")
    awk -v what=$what -v names="$names" -v plain="$plain" 'BEGIN { printf "%s: names/plain %.2f\n", what, names / plain }'
done
