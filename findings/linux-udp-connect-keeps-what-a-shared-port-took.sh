#!/bin/bash
# Linux UDP: a socket that shares a port only to send receives datagrams of the other socket, and connect(2) does not return
# them.
#
# Programs that speak to a multicast group share its port by SO_REUSEADDR (mDNS: 5353). A program that only sends from such a
# port might bind a second socket to it and connect that to the group: from then on it receives only from the group's
# address, which is never a source. But of the sockets that share a port, unicast goes to the one that was bound last.
# So between bind(2) and connect(2) the new socket gets the other program's datagrams. connect(2) does not drop what is
# queued: the datagram is lost for the other program, and is still readable at a socket "connected" to another address.
#
# A socket that is bound to the group itself never takes unicast. It can still send: the source is the interface's
# address, not the group's. It still gets a copy of the group's datagrams, although it has joined nothing, unless
# IP_MULTICAST_ALL is off (ip(7)).
#
# Seen with Linux 6.18:
#   bound to any address, then connected: the datagram sent in between goes to the new socket
#   bound to the group: the source is 192.0.2.1, port 5353; unicast goes to the other program
#   bound to the group, IP_MULTICAST_ALL on: a copy of the group's datagrams; off: none
#
# For passt-rs: multicast of a guest leaves from a port that a daemon of the host has by a socket bound to the group, with
# IP_MULTICAST_ALL off (crates/passt/src/io/udp.rs, UdpSocket::share).
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
ip link set lo up
ip link set d0 up
ip link set d1 up
ip addr add 192.0.2.1/24 dev d0
ip route add 224.0.0.0/4 dev d0
exec python3 -c "$1"' sh '
import select, socket, struct, sys
GROUP, PORT, ADD_MEMBERSHIP, MULTICAST_ALL = "224.0.0.251", 5353, 35, 49
own = "192.0.2.1"

def shared(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, PORT))
    return s

def all_of(s):
    got = []
    while select.select([s], [], [], 0.3)[0]:
        data, source = s.recvfrom(100)
        got.append((data.decode(), source if source[1] == PORT else "other port"))
    return got

daemon = shared("0.0.0.0")
member = struct.pack("4s4si", socket.inet_aton(GROUP), bytes(4), socket.if_nametoindex("d0"))
daemon.setsockopt(socket.IPPROTO_IP, ADD_MEMBERSHIP, member)
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.bind((own, 0))
same = True

def check(what, seen, expected):
    global same
    same &= seen == expected
    print(what + ":", seen if seen == expected else f"{seen}, not {expected}")

new = shared("0.0.0.0")
peer.sendto(b"between", (own, PORT))
new.connect((GROUP, PORT))
peer.sendto(b"after", (own, PORT))
check("any address, then connected: the daemon has", all_of(daemon), [("after", "other port")])
check("any address, then connected: the new socket has", all_of(new), [("between", "other port")])
new.close()

for members_only in (False, True):
    new = shared(GROUP)
    if members_only:
        new.setsockopt(socket.IPPROTO_IP, MULTICAST_ALL, 0)
    new.sendto(b"announcement", (GROUP, PORT))
    check("bound to the group: the daemon hears", all_of(daemon), [("announcement", (own, PORT))])
    check("the new socket itself", all_of(new), [] if members_only else [("announcement", (own, PORT))])
    peer.sendto(b"unicast", (own, PORT))
    check("bound to the group: unicast goes to the daemon", all_of(daemon), [("unicast", "other port")])
    check("and not to the new socket", all_of(new), [])
    new.close()
sys.exit(0 if same else 1)
'
