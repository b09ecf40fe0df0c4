#!/bin/bash
# Linux UDP: a train of datagrams (UDP_SEGMENT) leaves without "don't fragment", where each of them alone has it.
#
# A UDP socket has IP_PMTUDISC_WANT by default. By ip(7) the kernel then fragments a datagram if needed according to the
# path's MTU, and sets the don't-fragment flag otherwise. Each datagram of a train fits the MTU, and nothing is
# fragmented. But the kernel compares the length of the whole train with the MTU, and clears the flag in all of them. So a
# program that learns the path's MTU by its packets (QUIC) loses the flag the moment it uses UDP_SEGMENT: a router on the
# path fragments what it should have refused. With IP_PMTUDISC_DO or IP_PMTUDISC_PROBE the flag stays.
#
# Seen with Linux 6.18 (datagrams of up to 1200 bytes, MTU 1500; the flag of all packets):
#   WANT, alone: DF
#   WANT, train of 2400 bytes: no DF
#   WANT, train of 1400 bytes: DF
#   DO, train of 2400 bytes: DF
#
# For passt-rs: a guest's datagrams with the flag are sent by a socket with IP_PMTUDISC_DO, alone or in a train.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
command -v ip >/dev/null || cannot "no ip"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
unshare -Urn sh -c 'ip link add d0 type veth peer name d1' 2>/dev/null || cannot "no veth interfaces"
uname -sr
# shellcheck disable=SC2016
unshare -Urn sh -ec '
ip link add d0 mtu 1500 type veth peer name d1
ip link set d0 up
ip link set d1 up
ip addr add 192.0.2.1/24 dev d0
ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev d0
exec python3 -c "$1"' sh '
import socket, struct, sys
MTU_DISCOVER, WANT, DO, SOL_UDP, UDP_SEGMENT = 10, 1, 2, 17, 103

def packets(mode, length, size):
    seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
    seen.bind(("d0", 0x0003))
    seen.settimeout(10)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, mode)
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", size))] if size else []
    s.sendmsg([bytes(length)], control, 0, ("192.0.2.2", 9))
    total, found = 0, []
    while total < length:
        packet = seen.recv(65535)
        # Others (IPv6 router solicitations) are none of ours.
        if packet[0] >> 4 == 4 and packet[9] == 17:
            total += struct.unpack("!H", packet[2:4])[0] - 28
            # The train may still be one packet here: its header is that of all.
            found.append("DF" if packet[6] & 0x40 else "no DF")
    return ", ".join(sorted(set(found)))

expected = [
    ("WANT, alone", WANT, 1200, None, "DF"),
    ("WANT, train of 2400 bytes", WANT, 2400, 1200, "no DF"),
    ("WANT, train of 1400 bytes", WANT, 1400, 1200, "DF"),
    ("DO, train of 2400 bytes", DO, 2400, 1200, "DF"),
]
same = True
for name, mode, length, size, want in expected:
    got = packets(mode, length, size)
    print("%s: %s" % (name, got))
    same &= got == want
sys.exit(0 if same else 1)
'
