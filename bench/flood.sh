#!/bin/bash
# Round trips of a light UDP flow beside a flood: a datagram of 16 bytes every 2 ms, while another flow sends datagrams of
# 64 bytes as fast as it can. From the guest to the peer, and from the peer to the guest. For root; needs iperf3, python3.
#
#     bench/flood.sh SECONDS ROUNDS PASTA [PASTA]...
#
# The programs take turns. Prints the median and the 99th percentile of the round trips, in microseconds, the share of
# questions without an answer within 200 ms, and the flood's rate at its receiver, in thousands of datagrams a second.
set -euo pipefail
seconds=$1 rounds=$2
shift 2
W=$(mktemp -d)
chmod 755 "$W"
H=flood$$h P=flood$$p
cleanup() {
    local ns
    for ns in "$H" "$P"; do
        ip netns pids "$ns" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "$ns" 2>/dev/null || true
    done
    [ -z "${holder:-}" ] || kill -9 "$holder" 2>/dev/null || true
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
ip netns add "$H"
ip netns add "$P"
ip link add eth0 netns "$H" type veth peer name eth0 netns "$P"
for ns in "$H" "$P"; do
    ip -n "$ns" link set lo up
    ip -n "$ns" link set eth0 up
done
ip -n "$H" addr add 192.0.2.10/24 dev eth0
ip -n "$P" addr add 192.0.2.1/24 dev eth0
ip -n "$H" route add default via 192.0.2.1

cat >"$W/echo.py" <<'END'
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 7001))
while True:
    s.sendto(*s.recvfrom(2048))
END
cat >"$W/ask.py" <<'END'
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 7001))
s.settimeout(0.2)
times, lost, number, end = [], 0, 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    number += 1
    begin = time.monotonic()
    s.send(struct.pack("QQ", number, 0))
    try:
        while struct.unpack("QQ", s.recv(64))[0] != number:
            pass
        times.append((time.monotonic() - begin) * 1e6)
    except TimeoutError:
        lost += 1
    time.sleep(0.002)
times.sort()
at = lambda share: round(times[int(len(times) * share)]) if times else -1
print(at(0.5), at(0.99), f"{100 * lost / number:.1f}")
END

# The rate that the receiver of an iperf3 client's output saw, in thousands a second.
rate() {
    python3 -c 'import json, sys
end = json.load(open(sys.argv[1]))["end"]["sum"]
print(round((end["packets"] - end["lost_packets"]) / end["seconds"] / 1000))' "$1"
}

once() {
    local pasta=$1 direction=$2
    ip netns exec "$H" setpriv --reuid nobody --regid nogroup --clear-groups \
        unshare -Urn sh -c "ip link set lo up; echo \$\$ >$W/holder; exec sleep 600" &
    while [ ! -s "$W/holder" ]; do sleep 0.05; done
    holder=$(cat "$W/holder")
    : >"$W/holder"
    local peer=(ip netns exec "$P") guest=(nsenter --preserve-credentials -t "$holder" -U -n)
    local from=("${guest[@]}") to=("${peer[@]}") address=192.0.2.1
    if [ "$direction" = in ]; then from=("${peer[@]}") to=("${guest[@]}") address=192.0.2.10; fi
    ip netns exec "$H" setpriv --reuid nobody --regid nogroup --clear-groups \
        "$pasta" -f -q --config-net --no-map-gw -t 5201 -u 5201,7001 -T none -U none "$holder" 2>/dev/null &
    local process=$!
    while ! "${guest[@]}" ip route 2>/dev/null | grep -q default; do sleep 0.05; done
    "${to[@]}" iperf3 -s -1 >/dev/null &
    "${to[@]}" python3 "$W/echo.py" &
    local server=$!
    sleep 0.5
    "${from[@]}" iperf3 -c "$address" -u -b 0 -l 64 -t "$((seconds + 1))" -J >"$W/flood" 2>/dev/null &
    local flood=$!
    sleep 0.5
    local light
    light=$("${from[@]}" python3 "$W/ask.py" "$address" "$seconds")
    wait "$flood" || true
    echo "$direction $pasta $light $(rate "$W/flood" 2>/dev/null || echo -)"
    kill "$server" "$process" "$holder" 2>/dev/null || true
    wait 2>/dev/null || true
    holder=
}
: >"$W/holder"
chmod 666 "$W/holder"
echo "direction program median_us p99_us lost_percent flood_kpps"
for ((round = 0; round < rounds; round++)); do
    for direction in out in; do
        for pasta in "$@"; do once "$pasta" "$direction"; done
    done
done
