#!/usr/bin/env python3
"""The processor time of pasta under loads that do not fill it, in processors.

Usage: bench/paced.py SECONDS ROUNDS PASTA...

Needs iperf3, iproute2 and permission to create user namespaces, but no privileges. A client in the namespace sends, or
receives ("down"), at a fixed rate; the server is on the other side of the program, on the host. The programs take turns. Each
figure is the median of the rounds, with the lowest and the highest in brackets.
"""

import os
import statistics
import subprocess
import sys
import time

SERVER = "192.0.2.1"
PORT = "5201"
LOADS = {
    "nothing": None,
    "tcp up 200 Mbit/s": "-b 200M",
    "tcp down 200 Mbit/s": "-b 200M -R",
    "tcp up 1 Gbit/s": "-b 1G",
    "tcp down 1 Gbit/s": "-b 1G -R",
    "tcp up 5 Gbit/s": "-b 5G",
    "tcp down 5 Gbit/s": "-b 5G -R",
    "udp up 64 B, 1,000/s": "-u -l 64 -b 512k",
    "udp up 64 B, 20,000/s": "-u -l 64 -b 10240k",
    "udp down 64 B, 20,000/s": "-u -l 64 -b 10240k -R",
    "udp up 64 B, 50,000/s": "-u -l 64 -b 25600k",
}
SETTLE = 1.0  # seconds after the start of the load


def processor_time(pid):
    """In seconds."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pasta, load, seconds):
    duration = int(SETTLE + seconds + 1.5)
    command = ["iperf3", "-c", SERVER, "-p", PORT, "-t", str(duration), *load.split()] if load else ["sleep", str(duration)]
    # In the foreground, pasta's process is the one that is started here.
    process = subprocess.Popen([pasta, "--config-net", "--quiet", "--foreground", "--", *command], stdout=subprocess.DEVNULL)
    time.sleep(SETTLE)
    begin, start = processor_time(process.pid), time.monotonic()
    time.sleep(seconds)
    used, passed = processor_time(process.pid) - begin, time.monotonic() - start
    if process.wait() != 0:
        sys.exit(f"{pasta}: the load has failed")
    return used / passed


def network():
    """The host's network: pasta takes its addresses from an interface with a default route, and the gateway's is the host's own."""
    for command in (
        "ip link set lo up",
        "ip link add eth0 type veth peer name eth1",
        "ip addr add 192.0.2.10/24 dev eth0",
        "ip link set eth0 up",
        "ip link set eth1 up",
        "ip route add default via 192.0.2.1",
    ):
        subprocess.run(command.split(), check=True)


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    if "PACED_INSIDE" not in os.environ:
        os.environ["PACED_INSIDE"] = "1"
        unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--"]
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])
    seconds, rounds, programs = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    network()
    server = subprocess.Popen(["iperf3", "-s", "-p", PORT], stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        print(f"{seconds:g} s x {rounds} rounds, processors used by:", ", ".join(programs))
        for name, load in LOADS.items():
            figures = {program: [] for program in programs}
            for _ in range(rounds):
                for program in programs:
                    figures[program].append(measure(program, load, seconds))
            row = (f"{statistics.median(f):.3f} [{min(f):.3f}-{max(f):.3f}]" for f in figures.values())
            print(f"{name:24}", *row, flush=True)
    finally:
        server.kill()


main()
