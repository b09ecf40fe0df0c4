#!/usr/bin/env python3
"""The resident memory of pasta at rest, with many connections, and under floods by its guest.

Usage: bench/memory.py PASTA [CONNECTIONS] [--memory SIZE]

Needs root or the right to create user namespaces, iproute2, python3, and a limit of open files of twice CONNECTIONS (10000).
Each line is the highest value of a new pasta with the options given below: MiB in all, of it without pages of files (private memory), and
what the flood sent. The peer answers nothing. With --memory, pasta gets this budget, and each line says whether it was kept: the
resident memory is at most FIXED MiB more.
"""

import os
import random
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

HOST, GATEWAY = "192.0.2.10", "192.0.2.1"
RESOLVER = "192.0.2.77"
ECHO, DEAF = 7000, 7001
SECONDS = 20  # of each flood
FIXED = 8  # MiB: code, libraries and fixed buffers (docs/design/memory.md)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(source, target, protocol, payload, identification=0, fragment=0):
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), identification, fragment, 64, protocol, 0, source, target)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def layer4(source, target, protocol, payload, at):
    """Fills in the checksum, which is `at` bytes from the start."""
    pseudo = source + target + struct.pack("!BBH", 0, protocol, len(payload))
    return payload[:at] + struct.pack("!H", checksum(pseudo + payload) or 0xFFFF) + payload[at + 2:]


class Link:
    """The guest's interface."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.bind(("eth0", 0))
        self.mac = self.socket.getsockname()[4]
        self.own = socket.inet_aton(HOST)
        self.random = random.Random(1)

    def send(self, ethertype, payload, source=None):
        try:
            self.socket.send(b"\xff" * 6 + (source or self.mac) + struct.pack("!H", ethertype) + payload)
        except OSError:
            time.sleep(0.001)  # the queue of the device is full

    def other(self):
        return socket.inet_aton(f"198.51.{self.random.randrange(100, 104)}.{self.random.randrange(1, 255)}")

    def syn(self, number):
        target = self.other()
        segment = struct.pack("!HHIIBBHHH", 1024 + number % 60000, 1 + number // 60000, number, 0, 0x50, 2, 65535, 0, 0)
        self.send(0x0800, ipv4(self.own, target, 6, layer4(self.own, target, 6, segment, 16)))

    def datagram(self, number):
        target = self.other()
        datagram = struct.pack("!HHHH", 1024 + number % 60000, 1024 + number // 60000, 9, 0) + b"x"
        self.send(0x0800, ipv4(self.own, target, 17, layer4(self.own, target, 17, datagram, 6)))

    def fragment(self, number):
        datagram = struct.pack("!HHHH", 5000, 5000, 4008, 0) + bytes(1400)
        self.send(0x0800, ipv4(self.own, self.other(), 17, datagram, number % 65536, 0x2000))

    def ping(self, number):
        message = struct.pack("!BBHHH", 8, 0, 0, number % 65536, 1)
        message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        self.send(0x0800, ipv4(self.own, self.other(), 1, message))

    def question(self, number):
        name = b"%08x" % number
        message = struct.pack("!HHHHHH", number % 65536, 0x100, 1, 0, 0, 0) + b"\x08" + name + b"\x04test\0\0\1\0\1"
        target = socket.inet_aton(RESOLVER)
        datagram = struct.pack("!HHHH", 1024 + number % 60000, 53, 8 + len(message), 0) + message
        self.send(0x0800, ipv4(self.own, target, 17, layer4(self.own, target, 17, datagram, 6)))

    def station(self, number):
        """ARP requests by stations of their own."""
        mac = b"\x02\0" + struct.pack("!I", number)
        own, target = socket.inet_aton("192.0.2.%d" % (number % 253 + 2)), socket.inet_aton(GATEWAY)
        self.send(0x0806, struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, own, bytes(6), target), mac)


def flood(kind):
    link, end, number = Link(), time.monotonic() + SECONDS, 0
    send = getattr(link, kind)
    while time.monotonic() < end:
        send(number)
        number += 1
    print(number)


def connect(port, count, size):
    """Opens connections, sends as many bytes as each takes without waiting, and holds them."""
    held, refused = [], 0
    for _ in range(count):
        try:
            held.append(socket.create_connection((GATEWAY, port)))
        except ConnectionRefusedError:
            refused += 1
            continue
        held[-1].sendall(b"x")
        if port == ECHO:
            held[-1].recv(1)
    for connection in held if size else []:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        connection.settimeout(0.05)
        try:
            connection.sendall(bytes(size))
        except TimeoutError:
            pass
    print(len(held), f"({refused} refused)" if refused else "", flush=True)
    time.sleep(3)


def serve():
    echo, deaf, held = (socket.create_server(("127.0.0.1", ECHO), backlog=4096), socket.create_server(("127.0.0.1", DEAF), backlog=4096), [])

    def run():
        while True:
            held.append(echo.accept()[0])
            held[-1].sendall(held[-1].recv(1))

    threading.Thread(target=run, daemon=True).start()
    threading.Thread(target=lambda: [held.append(deaf.accept()[0]) for _ in iter(int, 1)], daemon=True).start()


def resident(pid):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["RssAnon"].split()[0]) / 1024


def measure(pasta, options, arguments):
    """The highest resident memory while a command runs, and what the command prints. The first half second is the start."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # for the user that pasta becomes
        script = f'sleep 1; exec "$@" >{folder}/out'
        command = ["sh", "-c", script, "sh", sys.executable, os.path.abspath(__file__), *arguments]
        process = subprocess.Popen([pasta, "--config-net", "--foreground", "--quiet", "--dns-forward", RESOLVER,
                                    "--dns", "198.51.100.53", *options, "--", *command])
        time.sleep(0.5)
        most = (0, 0)
        while process.poll() is None:
            try:
                most = max(most, resident(process.pid))
            except (OSError, KeyError):
                pass  # it has just ended
            time.sleep(0.05)
        with open(f"{folder}/out") as file:
            return most, file.read().strip()


def inside(pasta, count, budget):
    run = lambda line: subprocess.run(line.split(), check=True)
    run("ip link set lo up")
    run("ip link add eth0 type veth peer name peer0")
    run("ip link set peer0 up")
    run(f"ip address add {HOST}/24 dev eth0")
    run("ip link set eth0 up")
    run(f"ip route add default via {GATEWAY}")
    # Packets to the gateway are sent, and lost.
    run(f"ip neighbour add {GATEWAY} lladdr 02:00:00:00:00:01 dev eth0")
    serve()
    rows = {
        "at rest": ("rest",),
        f"{count} connections": ("connect", ECHO, count, 0),
        "400 connections to a server that does not read": ("connect", DEAF, 400, 2 << 20),
        "SYN to many addresses": ("flood", "syn"),
        "UDP to many addresses and ports": ("flood", "datagram"),
        "first fragments": ("flood", "fragment"),
        "pings with many identifiers": ("flood", "ping"),
        "DNS questions without answer": ("flood", "question"),
        "ARP by many stations": ("flood", "station"),
    }
    for name, arguments in rows.items():
        options = ["--memory", budget] if budget else []
        (whole, private), sent = measure(pasta, options, [str(argument) for argument in arguments])
        kept = ""
        if budget:
            most = mebibytes(budget) + FIXED
            kept = f", {'within' if whole <= most else 'BEYOND'} {most:.0f} MiB"
        print(f"{name}: {whole:.1f} MiB, private {private:.1f} MiB, {sent}{kept}", flush=True)


def mebibytes(size):
    factors = {"K": 1 / 1024, "M": 1, "G": 1024}
    return float(size[:-1]) * factors[size[-1]] if size[-1] in factors else int(size) / (1 << 20)


def main():
    role, rest = sys.argv[1], sys.argv[2:]
    if role == "rest":
        time.sleep(3)
        return print("nothing")
    if role == "connect":
        return connect(*map(int, rest))
    if role == "flood":
        return flood(rest[0])
    budget = None
    if "--memory" in rest:
        at = rest.index("--memory")
        budget = rest[at + 1]
        del rest[at:at + 2]
    pasta, count = os.path.abspath(role), int(rest[0]) if rest else 10000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if os.environ.get("MEMORY_INSIDE"):
        return inside(pasta, count, budget)
    os.environ["MEMORY_INSIDE"] = "1"
    unshare = ["unshare", "--net"] + ([] if os.getuid() == 0 else ["--user", "--map-root-user"])
    os.execvp("unshare", unshare + [sys.executable, __file__, pasta, str(count)] + (["--memory", budget] if budget else []))


if __name__ == "__main__":
    main()
