#!/usr/bin/env python3
"""How long a list of all flows takes at the API socket, and what it costs the threads of pasta.

Usage: bench/flows.py PASTA [FLOWS [ROUNDS]]

Needs the right to create user namespaces, iproute2, and a limit of open files above FLOWS. Opens FLOWS TCP connections
(9000) from a command of pasta to a server in pasta's host namespace, and then lists them ROUNDS times (20): all of them,
and the 1000 with the most bytes, by round-trip time, and by idle time.
"""

import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PORT = 7000
REQUESTS = {
    "all": {"limit": 10000},
    "1000 by idle": {"limit": 1000, "sort": "idle", "ascending": True},
    "1000 by bytes": {"limit": 1000, "sort": "bytes"},
    "1 by rtt": {"limit": 1, "sort": "rtt"},
    "none, by port": {"port": 1, "limit": 10000},
}


def main():
    if sys.argv[1] == "connect":
        return connect(int(sys.argv[2]))
    pasta, rest = os.path.realpath(sys.argv[1]), [int(arg) for arg in sys.argv[2:]]
    flows, rounds = (rest + [9000, 20][len(rest):])[:2]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if os.environ.get("BENCH_FLOWS_INSIDE"):
        return measure(pasta, flows, rounds)
    os.environ["BENCH_FLOWS_INSIDE"] = "1"
    unshare = ["unshare", "-n"] if os.getuid() == 0 else ["unshare", "-Urn"]
    os.execvp("unshare", unshare + [sys.executable, __file__, pasta, str(flows), str(rounds)])


def connect(count):
    """In the guest: opens connections to the gateway, which is the host, and holds them."""
    held = []
    for _ in range(count):
        held.append(socket.create_connection(("192.0.2.1", PORT)))
        held[-1].sendall(b"x")
    print("ready", flush=True)
    sys.stdin.read()


def serve():
    """Accepts connections, and holds them."""
    listener = socket.create_server(("127.0.0.1", PORT), backlog=4096)
    held = []

    def run():
        while True:
            held.append(listener.accept()[0])

    threading.Thread(target=run, daemon=True).start()


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.buffer = bytearray(2 << 20)

    def ask(self, arguments):
        """Sends a request, and returns its whole answer."""
        self.socket.sendall(json.dumps({"request": "flows", "arguments": arguments}).encode() + b"\n")
        at = 0
        while True:
            count = self.socket.recv_into(memoryview(self.buffer)[at:])
            assert count > 0
            at += count
            if self.buffer[at - 1] == 10:
                return bytes(self.buffer[:at])

    def list(self, arguments):
        """Reads a list, however many answers it takes."""
        answers = [self.ask(arguments)]
        while (mark := answers[-1].rfind(b'"next":"', -100)) > 0:
            after = answers[-1][mark + 8:].split(b'"')[0].decode()
            answers.append(self.ask(arguments | {"after": after}))
        return answers


def processor_time(pid):
    """Seconds by thread name."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return {
        (task / "comm").read_text().strip(): int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks
    }


def measure(pasta, flows, rounds):
    for command in (
        "link set lo up", "link add host0 type veth peer name peer0", "address add 192.0.2.2/24 dev host0",
        "link set host0 up", "link set peer0 up", "route add default via 192.0.2.1",
    ):
        subprocess.run(["ip"] + command.split(), check=True)
    serve()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        path, pid = f"{folder}/api", f"{folder}/pid"
        command = [pasta, "--config-net", "--api-socket", path, "--pid", pid, "-4", "-q", "--runas", "0", "--"]
        guest = subprocess.Popen(
            command + [sys.executable, __file__, "connect", str(flows)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert guest.stdout.readline() == b"ready\n"
        pid = int(pathlib.Path(pid).read_text())
        client = Client(path)
        for name, arguments in REQUESTS.items():
            times = []
            before = processor_time(pid)
            for _ in range(rounds):
                start = time.perf_counter()
                answers = client.list(arguments)
                times.append((time.perf_counter() - start) * 1e3)
            after = processor_time(pid)
            listed = [flow for answer in answers for flow in json.loads(answer)["result"]["flows"]]
            assert len({flow["flow"] for flow in listed}) == len(listed)
            cpu = ", ".join(
                f"{thread} {(after[thread] - spent) / rounds * 1e3:.1f} ms"
                for thread, spent in before.items() if after[thread] - spent > 1e-5
            )
            size = sum(map(len, answers))
            print(
                f"{name}: {len(listed)} flows, {len(answers)} answers, {size} bytes; median {statistics.median(times):.1f} ms"
                f" ({min(times):.1f} to {max(times):.1f}); processor time of {cpu}", flush=True,
            )
        if os.environ.get("BENCH_FLOWS_HOLD"):
            print(path, pid, flush=True)
            sys.stdin.readline()
        guest.stdin.close()
        guest.wait()


main()
