#!/bin/bash
# Linux: the end of a source-specific multicast membership is never reported as a leave.
#
# IP_ADD_SOURCE_MEMBERSHIP makes the kernel report ALLOW_NEW_SOURCES (type 5). When the only such membership ends, one
# would expect what ends an ordinary membership: a record CHANGE_TO_INCLUDE without sources (type 3). The kernel sends
# BLOCK_OLD_SOURCES (type 6) with the source instead, which does not say that none is left. An ordinary membership begins
# with CHANGE_TO_EXCLUDE (type 4) and ends with type 3.
#
# Seen with Linux 6.18 (IGMPv3; type of record and number of sources):
#   any source: join 4/0, leave 3/0
#   one source: join 5/1, leave 6/1
#
# For passt-rs: a router that keeps no source filters has to ask (group-specific query) on BLOCK_OLD_SOURCES as well, or
# it stays a member until the timeout.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
command -v ip >/dev/null || cannot "no ip"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
unshare -Urn sh -c 'ip link add d0 type veth peer name d1' 2>/dev/null || cannot "no veth interfaces"
uname -sr
# shellcheck disable=SC2016
unshare -Urn sh -ec '
ip link add d0 type veth peer name d1
ip link set d0 up
ip link set d1 up
ip addr add 192.0.2.1/24 dev d0
exec python3 -c "$1"' sh '
import socket, struct, sys, time
GROUP, SOURCE, OWN = (socket.inet_aton(a) for a in ("233.252.0.7", "198.51.100.9", "192.0.2.1"))
ADD, DROP, ADD_SOURCE, DROP_SOURCE = 35, 36, 39, 40
seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
seen.bind(("d1", 0x0800))

def record():
    """The next record about the group: its type and number of sources."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        seen.settimeout(max(0.01, end - time.monotonic()))
        packet = seen.recv(2048)
        message = packet[(packet[0] & 15) * 4:]
        if packet[9] != 2 or message[0] != 0x22:
            continue
        at = 8
        for _ in range(struct.unpack("!H", message[6:8])[0]):
            kind, auxiliary, sources = struct.unpack("!BBH", message[at:at + 4])
            if message[at + 4:at + 8] == GROUP:
                return "%d/%d" % (kind, sources)
            at += 8 + 4 * sources + 4 * auxiliary
    return "nothing"

def next_but(old):
    new = record()
    while new == old:
        new = record()
    return new

same = True
for name, add, drop, argument, want in [
    ("any source", ADD, DROP, GROUP + OWN, ("4/0", "3/0")),
    ("one source", ADD_SOURCE, DROP_SOURCE, GROUP + OWN + SOURCE, ("5/1", "6/1")),
]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, add, argument)
    joined = next_but("3/0")
    s.setsockopt(socket.IPPROTO_IP, drop, argument)
    left = next_but(joined)
    print("%s: join %s, leave %s" % (name, joined, left))
    same = same and (joined, left) == want
sys.exit(0 if same else 1)
'
