#!/bin/bash
# Linux sends a TCP checksum that comes to zero as 0xFFFF where no device computes it, although only UDP has that rule.
#
# RFC 768 has all ones in place of a computed zero, because zero means "no checksum" in UDP. TCP has no such rule
# (RFC 9293 §3.1): the complement of 0xFFFF is 0x0000. The kernel's software fallback (skb_checksum_help) does not ask for
# the protocol. Both values are zero in one's complement, and a receiver that adds up everything accepts both. One that
# computes the checksum and compares it with the field drops the segment, and each retransmission of it, as these are equal.
#
# Seen with Linux 6.18 (a tap without checksum offload):
#   sum ffff: checksum ffff (the complement is 0000)
#
# For passt-rs: it sends the complement as it is (wire::checksum), which every receiver accepts. To verify, it adds up
# everything, so that a guest's 0xFFFF is right, too.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }

for tool in unshare ip sysctl /usr/bin/python3; do
    command -v "$tool" >/dev/null || cannot "no $tool"
done
[ -w /dev/net/tun ] || cannot "no /dev/net/tun"
if [ "$(id -u)" = 0 ]; then
    namespaces=(unshare -n)
else
    namespaces=(unshare -Urn)
fi
"${namespaces[@]}" true 2>/dev/null || cannot "namespaces are not allowed"
folder=$(mktemp -d) || exit 77
trap 'rm -rf "$folder"' EXIT
uname -sr

cat >"$folder/tap.py" <<'PY'
# A peer at the other end of a tap: it accepts a connection, and shows the checksum of a segment whose payload was chosen
# so that everything adds up to 0xFFFF. For that, each segment is computed from the one before it.
import fcntl, os, select, socket, struct, subprocess, sys

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
subprocess.run(
    "sysctl -qw net.ipv4.tcp_timestamps=0 && ip addr add 192.0.2.2/24 dev tap0 && ip link set tap0 up"
    " && ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev tap0",
    shell=True, check=True)

def total(data):
    value = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while value > 0xffff:
        value = (value & 0xffff) + (value >> 16)
    return value

def segment():
    while select.select([tap], [], [], 10)[0]:
        frame = os.read(tap, 65536)
        if frame[12:14] == b"\x08\x00" and frame[23] == 6:
            return frame[26:34], frame[34:14 + struct.unpack("!H", frame[16:18])[0]], frame
    sys.exit("no segment")

def answer(frame, flags, sequence, acknowledgment):
    ports = frame[36:38] + frame[34:36]
    tcp = ports + struct.pack("!IIBBHHH", sequence, acknowledgment, 0x50, flags, 65000, 0, 0)
    addresses = frame[30:34] + frame[26:30]
    checksum = 0xffff ^ total(addresses + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", checksum) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", 0xffff ^ total(ip)) + ip[12:]
    os.write(tap, frame[6:12] + frame[:6] + frame[12:14] + ip + tcp)

def sum_without_field(addresses, tcp):
    pseudo = addresses + struct.pack("!HH", 6, len(tcp))
    return total(pseudo + tcp[:16] + b"\0\0" + tcp[18:])

client = socket.socket()
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
client.setblocking(False)
client.connect_ex(("192.0.2.1", 80))
_, syn, frame = segment()
sequence = struct.unpack("!I", syn[4:8])[0] + 1
answer(frame, 0x12, 1000, sequence)
segment()  # its acknowledgment
payload = b"\0\0"
for attempt in range(20):
    client.send(payload)
    addresses, tcp, frame = segment()
    found = sum_without_field(addresses, tcp)
    if found == 0xffff:
        print(f"sum {found:04x}: checksum {tcp[16:18].hex()} (the complement is {0xffff ^ found:04x})")
        break
    sequence += 2
    answer(frame, 0x10, 1001, sequence)
    following = tcp[:4] + struct.pack("!I", sequence) + tcp[8:20] + b"\0\0"
    payload = struct.pack("!H", 0xffff ^ sum_without_field(addresses, following))
PY
out=$("${namespaces[@]}" /usr/bin/python3 "$folder/tap.py") || cannot "$out"
echo "$out"
[ "$out" = 'sum ffff: checksum ffff (the complement is 0000)' ] && { echo 'as described'; exit 0; }
echo 'CHANGED'
exit 1
