#!/bin/bash
# Linux UDP: of sockets that share a port by SO_REUSEPORT, one that has joined nothing takes the group's datagrams from the
# only one that has.
#
# A multicast datagram is for every socket that is bound to its port and is a member of its group. A socket that is bound
# to the group, is no member, and has IP_MULTICAST_ALL off gets none (ip(7)). That holds with SO_REUSEADDR. With
# SO_REUSEPORT it does not: where the kernel finds a single member, it takes the shortcut for unicast, and that chooses among
# all sockets with the same address, port and user by a hash of the datagram's source and destination. So if a program
# sends from the port by a second socket, it no longer receives about half of the datagrams, always of the same senders.
# With two members the shortcut is not taken, and both receive everything.
#
# Seen with Linux 6.18, 40 senders, numbers vary between runs:
#   SO_REUSEADDR: the member hears 40, the other socket 0
#   SO_REUSEPORT: the member hears 21, the other socket 19
#   SO_REUSEPORT and a second member: both members hear 40, the other socket 0
#
# For passt-rs: ports of groups are shared by SO_REUSEADDR, and by SO_REUSEPORT only with programs that insist on it
# (crates/passt/src/io/udp.rs, UdpSocket::share).
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
command -v ip >/dev/null || cannot "no ip"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
unshare -Urn sh -c 'ip link add d0 type veth peer name d1' 2>/dev/null || cannot "no veth interfaces"
uname -sr
# shellcheck disable=SC2016
unshare -Urn sh -ec '
ip link set lo up
exec python3 -c "$1"' sh '
import os, select, socket, struct, subprocess, sys
GROUP, PORT, ADD_MEMBERSHIP, MULTICAST_IF, MULTICAST_ALL, SENDERS = "239.1.2.3", 5353, 35, 32, 49, 40

def ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True)

# The sender is in a namespace of its own: what the host sends to itself takes another way.
to_child, to_parent = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.unshare(os.CLONE_NEWNET) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None).unshare(0x40000000)
    os.write(to_parent[1], b"r")
    os.read(to_child[0], 1)
    ip("addr add 192.0.2.2/24 dev d1")
    ip("link set d1 up")
    os.write(to_parent[1], b"r")
    while os.read(to_child[0], 1) == b"s":
        for n in range(SENDERS):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.bind(("192.0.2.2", 6000 + n))
            s.setsockopt(socket.IPPROTO_IP, MULTICAST_IF, socket.inet_aton("192.0.2.2"))
            s.sendto(b"x", (GROUP, PORT))
        os.write(to_parent[1], b"d")
    os._exit(0)
os.read(to_parent[0], 1)
ip("link add d0 type veth peer name d1 netns %d" % child)
ip("addr add 192.0.2.1/24 dev d0")
ip("link set d0 up")
os.write(to_child[1], b"r")
os.read(to_parent[0], 1)

def opened(member, option):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, option, 1)
    s.setsockopt(socket.IPPROTO_IP, MULTICAST_ALL, 0)
    s.bind((GROUP, PORT))
    if member:
        request = struct.pack("4s4si", socket.inet_aton(GROUP), bytes(4), socket.if_nametoindex("d0"))
        s.setsockopt(socket.IPPROTO_IP, ADD_MEMBERSHIP, request)
    return s

def heard(members, option):
    sockets = [opened(n < members, option) for n in range(members + 1)]
    os.write(to_child[1], b"s")
    os.read(to_parent[0], 1)
    counts = []
    for s in sockets:
        counts.append(0)
        while select.select([s], [], [], 0.3)[0]:
            s.recv(10)
            counts[-1] += 1
        s.close()
    return counts

address = heard(1, socket.SO_REUSEADDR)
port = heard(1, socket.SO_REUSEPORT)
two = heard(2, socket.SO_REUSEPORT)
os.write(to_child[1], b"e")
print("SO_REUSEADDR: the member hears %d, the other socket %d" % tuple(address))
print("SO_REUSEPORT: the member hears %d, the other socket %d" % tuple(port))
print("SO_REUSEPORT and a second member: both members hear %d, %d, the other socket %d" % tuple(two))
same = address == [SENDERS, 0] and port[1] > 0 and sum(port) == SENDERS and two == [SENDERS, SENDERS, 0]
sys.exit(0 if same else 1)
'
