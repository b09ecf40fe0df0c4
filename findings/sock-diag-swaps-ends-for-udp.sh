#!/bin/bash
# A request of sock_diag(7) for one UDP socket names the socket's own address and port as the *destination*; for TCP it
# is the source.
#
# The field names of struct inet_diag_sockid (idiag_src, idiag_dst) are the same for both protocols, dumps fill them in
# the same way (source: the socket's own address), and the reply to the exact request does so, too. Only the exact
# request for UDP is interpreted the other way round. A request for UDP in the form for TCP returns ENOENT even if the socket
# exists.
#
# Seen on Linux 6.18:
#   TCP, own address as source: found
#   TCP, own address as destination: No such file or directory
#   UDP, own address as source: No such file or directory
#   UDP, own address as destination: found, and the reply has it as source
#
# For passt-rs: `passt::forward::scan` looks up single ports with the ends swapped for UDP.
set -u
[ -x /usr/bin/python3 ] || { echo 'cannot try it here: no /usr/bin/python3'; exit 77; }
unshare -Urn true 2>/dev/null || { echo 'cannot try it here: no user namespaces'; exit 77; }
uname -sr
exec unshare -Urn /usr/bin/python3 - <<'PY'
import os, socket, struct, subprocess, sys

subprocess.check_call(["ip", "link", "set", "lo", "up"])
SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, NLMSG_ERROR, NETLINK_SOCK_DIAG = 20, 1, 2, 4
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
own = (socket.inet_aton("127.0.0.1") + bytes(12), 5000)
none = (bytes(16), 0)

def ask(protocol, source, destination):
    """The exact request: what the kernel answers."""
    ends = struct.pack("!HH", source[1], destination[1]) + source[0] + destination[0]
    body = struct.pack("=BBBBI", socket.AF_INET, protocol, 0, 0, 0xFFFFFFFF) + ends + bytes(4) + b"\xff" * 8
    netlink.send(struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0) + body)
    reply = netlink.recv(8192)
    if struct.unpack_from("=H", reply, 4)[0] == NLMSG_ERROR:
        return os.strerror(-struct.unpack_from("=i", reply, 16)[0])
    port, address = struct.unpack_from("!H", reply, 20)[0], socket.inet_ntoa(reply[24:28])
    return "found" if (address, port) == ("127.0.0.1", 5000) else f"found {address}:{port}"

tcp = socket.create_server(("127.0.0.1", 5000))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 5000))
missing = os.strerror(2)
expected = {"TCP source": "found", "TCP destination": missing, "UDP source": missing, "UDP destination": "found"}
seen = {}
for name, protocol in (("TCP", socket.IPPROTO_TCP), ("UDP", socket.IPPROTO_UDP)):
    seen[f"{name} source"] = ask(protocol, own, none)
    seen[f"{name} destination"] = ask(protocol, none, own)
for case, answer in seen.items():
    print(f"{case.replace(' ', ', own address as ')}: {answer}")
print("as described" if seen == expected else "CHANGED")
sys.exit(seen != expected)
PY
