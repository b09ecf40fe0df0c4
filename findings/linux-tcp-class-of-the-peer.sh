#!/bin/bash
# Linux TCP: how much a socket knows of its peer's traffic class (DSCP) differs between IPv4 and IPv6, and between the
# side that connected and the one that accepted.
#
# With IP_RECVTOS, getsockopt(IP_PKTOPTIONS) always gives the TOS of the SYN of an accepted IPv4 socket, whatever the
# peer sends later. A socket that connected has no value: it reads zero, even if the peer's SYN,ACK and
# data have another one. With IPV6_RECVTCLASS, getsockopt(IPV6_2292PKTOPTIONS) gives the class of the newest segment, on both
# sides, and the kernel keeps a copy of each segment for it. recvmsg(2) gives neither for TCP.
#
# Seen with Linux 6.18 (the peer's classes are 0x48, then 0x88):
#   IPv4 accepted: 0x48 then 0x48
#   IPv4 connected: 0x0 then 0x0
#   IPv6 accepted: 0x48 then 0x88
#   IPv6 connected: 0x48 then 0x88
#
# For passt-rs: segments to the guest have the class of the client's SYN. For IPv4 nothing better is available; for IPv6
# the copy of each segment costs too much.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
uname -sr
# shellcheck disable=SC2016
unshare -Urn sh -c 'ip link set lo up && exec python3 -c "$1"' sh '
import socket, struct, sys
FAMILIES = {
    # level, own class, report, ask
    "IPv4": (socket.AF_INET, "127.0.0.1", 0, 1, 13, 9),
    "IPv6": (socket.AF_INET6, "::1", 41, 67, 66, 6),
}

def known(s, level, report, ask):
    message = s.getsockopt(level, ask, 64)
    return struct.unpack_from("i", message, 16)[0] if len(message) >= 20 else None

lines = []
for name, (family, address, level, own, report, ask) in FAMILIES.items():
    for side in "accepted", "connected":
        listener = socket.create_server((address, 0), family=family)
        client = socket.socket(family)
        if side == "accepted":
            listener.setsockopt(level, report, 1)
            client.setsockopt(level, own, 0x48)
        else:
            client.setsockopt(level, report, 1)
            listener.setsockopt(level, own, 0x48)
        client.connect(listener.getsockname())
        server = listener.accept()[0]
        near, far = (server, client) if side == "accepted" else (client, server)
        near.settimeout(10)
        classes = []
        for change in 0x48, 0x88:
            far.setsockopt(level, own, change)
            far.sendall(b"x")
            assert near.recv(1) == b"x"
            classes.append(known(near, level, report, ask))
        lines.append(f"{name} {side}: {classes[0]:#x} then {classes[1]:#x}")
print(*lines, sep="\n")
sys.exit(lines != [
    "IPv4 accepted: 0x48 then 0x48",
    "IPv4 connected: 0x0 then 0x0",
    "IPv6 accepted: 0x48 then 0x88",
    "IPv6 connected: 0x48 then 0x88",
])
'
