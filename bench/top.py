#!/usr/bin/env python3
"""What `pesto top` costs: throughput and transactions with and without it, over 200 flows of which 4 are in bulk.

Usage: bench/top.py PASTA PESTO LOAD [ROUNDS [SECONDS]]
       bench/top.py PASTA PESTO LOAD show FILE      (writes the screen, with escape sequences)

LOAD is the program `xtask` (cargo build --release -p xtask). Needs the right to create user namespaces, iproute2, and tmux
for `show`. Rounds with and without `pesto top` take turns.
"""

import os
import pathlib
import pty
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

TCP, UDP, BULK = 177, 19, 4
PEERS = [f"203.0.113.{number}" for number in range(1, 41)]


def main():
    if sys.argv[1] == "guest":
        return guest(sys.argv[2])
    if not os.environ.get("BENCH_TOP_INSIDE"):
        os.environ["BENCH_TOP_INSIDE"] = "1"
        unshare = ["unshare", "-n"] if os.getuid() == 0 else ["unshare", "-Urn"]
        os.execvp("unshare", unshare + [sys.executable, __file__] + sys.argv[1:])
    pasta, pesto, load = [os.path.realpath(path) for path in sys.argv[1:4]]
    with tempfile.TemporaryDirectory(prefix="passt-") as folder, Setup(pasta, load, folder) as setup:
        if sys.argv[4:5] == ["show"]:
            show(setup, pesto, sys.argv[5])
        else:
            rounds, seconds = ([int(arg) for arg in sys.argv[4:]] + [7, 2][len(sys.argv) - 4:])[:2]
            measure(setup, pesto, rounds, seconds)


def guest(load):
    """In the guest: opens idle flows, then runs loads on request. Each line is a load and a number of seconds."""
    held = [socket.create_connection((PEERS[n % len(PEERS)], [443, 8443, 22][n % 3])) for n in range(TCP)]
    for n, stream in enumerate(held):
        stream.sendall(b"x" * (n * 37 % 900 + 1))
    for n in range(UDP):
        held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        held[-1].sendto(b"x" * 40, (PEERS[n], 123))
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        name, count = ("up", BULK) if name == "bulk" else (name, 1)
        loads = [
            subprocess.Popen(
                [load, "load", name if n % 2 == 0 else "down" if count > 1 else name, PEERS[n], "7001", seconds],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for n in range(count)
        ]
        total = sum(float(process.stdout.readline().split()[0]) for process in loads)
        for process in loads:
            process.stdin.close()
            process.wait()
        print(total, flush=True)


class Setup:
    """A host namespace with servers, and a pasta whose command holds the flows."""

    def __init__(self, pasta, load, folder):
        for command in (
            "link set lo up", "link add host0 type veth peer name peer0", "address add 192.0.2.2/24 dev host0",
            "link set host0 up", "link set peer0 up", "route add default via 192.0.2.1",
            *(f"address add {peer}/32 dev lo" for peer in PEERS),
        ):
            subprocess.run(["ip"] + command.split(), check=True)
        self.held = []
        for port in (443, 8443, 22):
            threading.Thread(target=self.accept, args=[socket.create_server(("", port), backlog=512)], daemon=True).start()
        clock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        clock.bind(("", 123))
        self.held.append(clock)
        self.server = subprocess.Popen([load, "load", "serve", "7001"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.server.stdout.readline() == b"ready\n"
        os.chmod(folder, 0o777)
        self.api, pid = f"{folder}/build.api", f"{folder}/pid"
        command = [pasta, "--config-net", "--api-socket", self.api, "--pid", pid, "-4", "-q", "--runas", "0", "--"]
        self.guest = subprocess.Popen(
            command + [sys.executable, __file__, "guest", load], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.guest.stdout.readline() == "ready\n"
        self.pid = int(pathlib.Path(pid).read_text())

    def accept(self, listener):
        while True:
            self.held.append(listener.accept()[0])

    def start(self, load, seconds):
        self.guest.stdin.write(f"{load} {seconds}\n")
        self.guest.stdin.flush()

    def result(self):
        return float(self.guest.stdout.readline())

    def run(self, load, seconds):
        self.start(load, seconds)
        return self.result()

    def packet_thread(self):
        """Processor time of the thread that handles packets, in seconds."""
        return int(pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.guest.stdin.close()
        self.guest.wait()
        self.server.stdin.close()
        self.server.wait()


class Top:
    """`pesto top` on a terminal of 132 columns and 40 lines, which is read."""

    def __init__(self, pesto, api):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(pesto, [pesto, "top", api])
        import fcntl, struct, termios
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
        self.written = 0
        threading.Thread(target=self.read, daemon=True).start()
        time.sleep(1.5)
        assert self.written > 1000, "pesto top draws nothing"

    def read(self):
        try:
            while data := os.read(self.terminal, 65536):
                self.written += len(data)
        except OSError:
            pass

    def quit(self):
        os.write(self.terminal, b"q")
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


def measure(setup, pesto, rounds, seconds):
    figures = {(load, attached): [] for load in ("bulk", "rr") for attached in (False, True)}
    for number in range(rounds):
        for attached in ((False, True) if number % 2 == 0 else (True, False)):
            top = Top(pesto, setup.api) if attached else None
            for load in ("bulk", "rr"):
                figures[load, attached].append(setup.run(load, seconds))
            if top:
                top.quit()
    for load, unit in (("bulk", 1e9 / 8), ("rr", 1)):
        without, with_top = (statistics.median(figures[load, attached]) / unit for attached in (False, True))
        name = "Gbit/s of 4 connections" if load == "bulk" else "transactions/s"
        print(f"{name}: without {without:.5g}, with pesto top {with_top:.5g}, ratio {with_top / without:.3f}")
        for attached in (False, True):
            print("   ", "with:   " if attached else "without:", *(f"{figure / unit:.5g}" for figure in figures[load, attached]))
    costs = []
    for attached in (False, True):
        top = Top(pesto, setup.api) if attached else None
        before, begun = setup.packet_thread(), time.monotonic()
        time.sleep(10)
        costs.append((setup.packet_thread() - before) / (time.monotonic() - begun) * 100)
        if top:
            top.quit()
    print(f"packet thread while the flows are idle: without {costs[0]:.3f} %, with pesto top {costs[1]:.3f} % of a core")


def show(setup, pesto, file):
    """Writes the screen of a real terminal (tmux) while four flows are in bulk."""
    tmux = ["tmux", "-L", f"top{os.getpid()}", "-f", "/dev/null"]
    subprocess.run(tmux + ["new-session", "-d", "-x", "132", "-y", "40", pesto, "top", setup.api], check=True)
    setup.start("bulk", 6)
    time.sleep(3.5)
    subprocess.run(tmux + ["send-keys", "Down", "Down", "Down"], check=True)
    time.sleep(1)
    screen = subprocess.run(tmux + ["capture-pane", "-e", "-p"], check=True, capture_output=True).stdout
    pathlib.Path(file).write_bytes(screen)
    subprocess.run(tmux + ["send-keys", "q"], check=True)
    setup.result()


main()
