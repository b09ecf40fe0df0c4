#!/bin/bash
# A UDP socket can return payload with a wrong inner checksum: a VXLAN datagram of another namespace of the same machine,
# whose inner TCP or UDP checksum was never computed.
#
# The kernel leaves a checksum to the device (CHECKSUM_PARTIAL). In a tunnel it leaves the inner one, and a veth accepts
# that, since the receiving kernel knows that it need not verify. A tunnel device at the other end passes the mark on.
# A socket cannot: it returns the payload with an inner checksum that covers only the pseudo-header, and neither a flag nor a
# control message says so. Over a real network card the same bytes are complete. Inner ICMP is always complete, so
# ping works. Without checksum offload on the tunnel device (ethtool -K vx0 tx-checksum-ip-generic off) all are complete.
#
# Seen with Linux 6.18:
#   offload on: inner ICMP complete, inner UDP open, inner TCP open
#   offload off: inner ICMP complete, inner UDP complete, inner TCP complete
#
# For passt-rs: it forwards what its sockets return unchanged, so the guest drops such packets. The guide says what to do at
# the other end. In the other direction the guest's kernel marks its frames (VIRTIO_NET_HDR_F_NEEDS_CSUM with csum_start
# inside the payload), and the checksum is completed.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }

for tool in unshare nsenter ip ping /usr/bin/python3 ethtool; do
    command -v "$tool" >/dev/null || cannot "no $tool"
done
folder=$(mktemp -d) || exit 77
pids=()
# shellcheck disable=SC2317
cleanup() {
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null
    rm -rf "$folder"
}
trap cleanup EXIT
uname -sr

# Two namespaces, a veth between them, and a VXLAN device in the first.
hold() {
    # shellcheck disable=SC2016
    unshare -n sh -c 'echo $$ >"$0"; exec sleep 60' "$folder/pid" &
    for _ in $(seq 100); do [ -s "$folder/pid" ] && break; sleep 0.05; done
    [ -s "$folder/pid" ] || cannot "namespaces are not allowed"
    pid=$(cat "$folder/pid")
    rm "$folder/pid"
    pids+=("$pid")
}
[ "$(id -u)" = 0 ] || cannot "not root"
hold; a=$pid
hold; b=$pid
in_a() { nsenter -t "$a" -n "$@"; }
in_b() { nsenter -t "$b" -n "$@"; }
in_a ip link add eth0 type veth peer name eth0 netns "$b" || cannot "no veth"
in_a ip addr add 192.0.2.1/24 dev eth0
in_b ip addr add 192.0.2.2/24 dev eth0
in_a ip link set eth0 up
in_b ip link set eth0 up
in_a ip link add vx0 type vxlan id 7 dstport 4789 remote 192.0.2.2 local 192.0.2.1 2>/dev/null || cannot "no VXLAN"
in_a ip link set vx0 mtu 1400 up
in_a ip addr add 198.51.100.1/24 dev vx0
in_a ip neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev vx0

cat >"$folder/receive.py" <<'PY'
# Reads VXLAN datagrams from a socket until there was one of each protocol inside, and says how their checksums are.
import socket, struct, sys

def total(data):
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    value = sum(words)
    while value > 0xffff:
        value = (value & 0xffff) + (value >> 16)
    return value

receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("192.0.2.2", 4789))
receiver.settimeout(20)
print("ready", file=sys.stderr, flush=True)
seen = {}
while len(seen) < 3:
    frame = receiver.recv(65535)[8:]
    if frame[12:14] != b"\x08\x00":
        continue
    packet = frame[14:14 + struct.unpack("!H", frame[16:18])[0]]
    protocol, upper = packet[9], packet[20:]
    name = {1: "ICMP", 6: "TCP", 17: "UDP"}.get(protocol)
    pseudo = packet[12:20] + struct.pack("!HH", protocol, len(upper))
    field = {6: upper[16:18], 17: upper[6:8]}.get(protocol)
    if total(upper if protocol == 1 else pseudo + upper) == 0xffff:
        seen[name] = "complete"
    elif field and struct.unpack("!H", field)[0] == total(pseudo):
        seen[name] = "open"
    else:
        seen[name] = "wrong"
print(", ".join(f"inner {name} {seen[name]}" for name in ("ICMP", "UDP", "TCP")))
PY
cat >"$folder/send.py" <<'PY'
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"question", ("198.51.100.2", 9))
connecting = socket.socket()
connecting.setblocking(False)
connecting.connect_ex(("198.51.100.2", 80))
PY

changed=0
try() {
    in_b /usr/bin/python3 "$folder/receive.py" >"$folder/out" 2>"$folder/ready" &
    receiver=$!
    for _ in $(seq 100); do grep -q ready "$folder/ready" && break; sleep 0.05; done
    in_a ping -c 1 -W 1 198.51.100.2 >/dev/null
    in_a /usr/bin/python3 "$folder/send.py"
    wait "$receiver"
    echo "$1: $(cat "$folder/out")"
    [ "$(cat "$folder/out")" = "$2" ] || changed=1
}

try 'offload on' 'inner ICMP complete, inner UDP open, inner TCP open'
in_a ethtool -K vx0 tx-checksum-ip-generic off >/dev/null
try 'offload off' 'inner ICMP complete, inner UDP complete, inner TCP complete'
[ "$changed" = 0 ] && echo 'as described' || echo 'CHANGED'
exit "$changed"
