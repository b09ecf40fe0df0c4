#!/bin/bash
# Linux UDP: when the kernel itself refuses a datagram as too long for the path (IP_PMTUDISC_DO), the entry in the error
# queue names another port than the datagram's, or there is no entry: it depends on the family and on how it was sent.
#
# By ip(7) msg_name of an error queue entry is the original destination address of the datagram that caused the error. That
# holds for ICMP messages of a router. For a refusal of the host's own (SO_EE_ORIGIN_LOCAL):
# - IPv4, unconnected socket: the address is there, the port is 0. IPv6: the port is there.
# - An IPv6 ping socket: the port is 32768, which is type and code of the echo request (128, 0).
# - A train (UDP_SEGMENT) whose pieces are too long: EMSGSIZE, and no entry at all, so the MTU is not known.
# A program that serves several peers by one socket can't find out from the entry whose path it was.
#
# Seen with Linux 6.18:
#   IPv4: EMSGSIZE, port 0, MTU 1400
#   IPv6: EMSGSIZE, port 9, MTU 1400
#   IPv4 train: EMSGSIZE, no entry
#   IPv6 ping: EMSGSIZE, port 32768, MTU 1400
#
# For passt-rs: an entry of local origin belongs to the datagram that was just refused, whatever its port; a train that is
# refused is sent again piece by piece, and the first piece leaves an entry.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
command -v ip >/dev/null || cannot "no ip"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
uname -sr
# shellcheck disable=SC2016
unshare -Urn sh -ec '
ip link set lo mtu 1400 up
echo "0 0" >/proc/sys/net/ipv4/ping_group_range
exec python3 -c "$1"' sh '
import errno, socket, struct, sys
DO, SOL_UDP, UDP_SEGMENT, ERRQUEUE = 2, 17, 103, 0x2000

def refused(family, protocol, payload, segment=None):
    v6 = family == socket.AF_INET6
    s = socket.socket(family, socket.SOCK_DGRAM, protocol)
    level, discover, report = (41, 23, 25) if v6 else (0, 10, 11)
    s.setsockopt(level, discover, DO)
    s.setsockopt(level, report, 1)
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", segment))] if segment else []
    try:
        s.sendmsg([payload], control, 0, ("::1" if v6 else "127.0.0.1", 9))
        return "sent"
    except OSError as error:
        name = errno.errorcode[error.errno]
    try:
        _, messages, _, address = s.recvmsg(1, 512, ERRQUEUE | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return name + ", no entry"
    _, origin, _, _, _, info, _ = struct.unpack("IBBBBII", messages[0][2][:16])
    assert origin == 1, "not of local origin"
    return "%s, port %d, MTU %d" % (name, address[1], info)

echo = struct.pack("!BBHHH", 128, 0, 0, 0, 1)
cases = [
    ("IPv4", (socket.AF_INET, 0, bytes(2000)), "EMSGSIZE, port 0, MTU 1400"),
    ("IPv6", (socket.AF_INET6, 0, bytes(2000)), "EMSGSIZE, port 9, MTU 1400"),
    ("IPv4 train", (socket.AF_INET, 0, bytes(3200), 1600), "EMSGSIZE, no entry"),
    ("IPv6 ping", (socket.AF_INET6, 58, echo + bytes(2000)), "EMSGSIZE, port 32768, MTU 1400"),
]
same = True
for name, case, want in cases:
    got = refused(*case)
    print("%s: %s" % (name, got))
    same &= got == want
sys.exit(0 if same else 1)
'
