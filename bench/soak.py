#!/usr/bin/env python3
"""Random checked traffic through pasta for a long time: memory, descriptors, latency, and whether the bytes balance.

Usage: bench/soak.py PASTA [--minutes 180] [--out FILE.tsv] [--seed N]
       bench/soak.py --plot FILE.tsv FILE.svg

Needs root or the right to create user namespaces, iproute2 and python3. It makes a host namespace and a peer, connected by a veth
pair, and starts pasta in the host namespace. TCP connections of random lengths, each way of each connection with checked contents,
run from the guest to the peer and back, and over the local bypass both ways. Others, to ports of their own, are reset
halfway. UDP datagrams are echoed, and a light TCP connection measures round trips. Each load runs in a process of its own, which is
started again about every five minutes; those that reset their connections are killed. The bytes of completed connections are
compared with what pasta tells at its API socket about flows that have ended.

The last lines tell what was transferred, what was lost or changed, and how memory and descriptors grew: megabytes or
descriptors per hour with a confidence interval of 95 %. The exit status is non-zero if a byte was changed, a completed connection lost one, or
the counts differ.
"""

import argparse
import json
import math
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

BLOCK = random.Random(1).randbytes(8 << 20)
HEADER = struct.Struct("!QQQQ")  # offset and length of each way
# Ports of servers on the peer; those on the host's loopback address are 100 higher, those in the guest 1000.
TCP, UDP, LIGHT, RESET = 7000, 7001, 7002, 7003
# The gateway would be the host's loopback address.
HOST, PEER, GATEWAY = "192.0.2.10", "192.0.2.20", "192.0.2.1"
# Loads: where the client runs, the server's address, and what is added to its port.
LOADS = {
    "out": ("guest", PEER, 0),
    "in": ("peer", HOST, 1000),
    "local out": ("guest", "127.0.0.1", 100),
    "local in": ("host", "127.0.0.1", 1000),
}
SAMPLE = 10.0  # seconds
TIMEOUT = 60.0  # seconds without progress after which a connection counts as stalled


def piece(offset, length):
    """A part of the block's endless repetition, as views."""
    view, offset = memoryview(BLOCK), offset % len(BLOCK)
    while length:
        part = view[offset:offset + length]
        yield part
        length, offset = length - len(part), 0


def send(connection, offset, length):
    for part in piece(offset, length):
        connection.sendall(part)


def receive(connection, offset, length):
    """Returns an error or None."""
    buffer = bytearray(1 << 18)
    for part in piece(offset, length):
        while part:
            count = connection.recv_into(memoryview(buffer)[:len(part)])
            if not count:
                return "lost"
            if memoryview(buffer)[:count] != part[:count]:
                return "changed"
            part = part[count:]
    return None


def exactly(connection, length):
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            return None
        data += more
    return data


# Servers


def serve_one(connection):
    with connection:
        connection.settimeout(TIMEOUT)
        try:
            header = exactly(connection, HEADER.size)
            if header is None:
                return
            up, up_length, down, down_length = HEADER.unpack(header)
            # Both ways at the same time.
            sender = threading.Thread(target=lambda: quietly(send, connection, down, down_length))
            sender.start()
            error = receive(connection, up, up_length)
            sender.join()
            connection.sendall(b"0" if error is None else b"1")
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        except OSError:
            pass


def quietly(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        pass


def serve(base):
    def light(listener):
        while True:
            connection = listener.accept()[0]
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=quietly, args=(echo, connection), daemon=True).start()

    def echo(connection):
        with connection:
            while data := connection.recv(1):
                connection.sendall(data)

    def datagrams():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", base + UDP))
        while True:
            data, client = server.recvfrom(65536)
            quietly(server.sendto, data, client)

    light_listener = socket.create_server(("0.0.0.0", base + LIGHT))
    threading.Thread(target=light, args=(light_listener,), daemon=True).start()
    threading.Thread(target=datagrams, daemon=True).start()
    def accept(listener):
        while True:
            threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()

    listeners = [socket.create_server(("0.0.0.0", base + port), backlog=1024) for port in (TCP, RESET)]
    print("ready", flush=True)
    threading.Thread(target=accept, args=(listeners[1],), daemon=True).start()
    accept(listeners[0])


# Clients: each prints a JSON object for each of its seconds


def report(**fields):
    print(json.dumps(fields), flush=True)


def length(rng):
    """Most are short, few are long."""
    return int(2 ** rng.uniform(0, 12)) if rng.random() < 0.98 else int(2 ** rng.uniform(12, 26))


def transfer(address, port, rng):
    """Returns what came of one connection, and its payload bytes up and down."""
    up, down = length(rng), length(rng)
    offsets = rng.randrange(len(BLOCK)), rng.randrange(len(BLOCK))
    try:
        with socket.create_connection((address, port), timeout=TIMEOUT) as connection:
            connection.sendall(HEADER.pack(offsets[0], up, offsets[1], down))
            sender = threading.Thread(target=lambda: quietly(send, connection, offsets[0], up))
            sender.start()
            error = receive(connection, offsets[1], down)
            sender.join()
            verdict = connection.recv(1)
            if error is None and verdict != b"0":
                error = "changed" if verdict == b"1" else "lost"
            if error is None and connection.recv(1):
                error = "changed"
            return error or "complete", up + HEADER.size, down + 1
    except TimeoutError:
        return "stalled", 0, 0
    except OSError as error:
        return "failed: " + (error.strerror or str(error)), 0, 0


def client(address, base, seed, rate):
    rng, start, done = random.Random(seed), time.monotonic(), 0
    bytes_per_second = 20e6
    ends = []
    # The connection that exists is completed and reported.
    signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
    while not ends:
        counts, up, down, second = {}, 0, 0, time.monotonic()
        while time.monotonic() < second + 1 and not ends:
            what, sent, received = transfer(address, base + TCP, rng)
            counts[what] = counts.get(what, 0) + 1
            up, down, done = up + sent, down + received, done + 1
            time.sleep(max(0, start + done / rate - time.monotonic(), 0))
        report(connections=counts, up=up, down=down)
        # A long transfer is followed by a pause, so that other programs of the machine run, too.
        pause = (up + down) / bytes_per_second - (time.monotonic() - second)
        if pause > 0 and not ends:
            time.sleep(pause)
        start, done = time.monotonic(), 0


def resets(address, base, seed):
    """Connections that are reset after a part of their bytes, or left to the kernel."""
    rng = random.Random(seed)
    while True:
        try:
            with socket.create_connection((address, base + RESET), timeout=TIMEOUT) as connection:
                up, down = length(rng), length(rng)
                connection.sendall(HEADER.pack(0, up, 0, down))
                part = rng.randrange(up + 1)
                quietly(send, connection, 0, min(part, 1 << 16))
                connection.recv(rng.randrange(1, 1 << 16))
                if rng.random() < 0.8:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        time.sleep(rng.expovariate(5))


def datagrams(address, base, seed):
    rng = random.Random(seed)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(1)
        connection.connect((address, base + UDP))
        unanswered = set()
        while True:
            sent = answered = changed = 0
            second = time.monotonic()
            while time.monotonic() < second + 1:
                offset, size = rng.randrange(len(BLOCK)), rng.randrange(8, 9000)
                data = b"".join(piece(offset, size))
                quietly(connection.send, data)
                sent += 1
                try:
                    # An answer to an earlier datagram may come late.
                    while (answer := connection.recv(65536)) in unanswered:
                        unanswered.remove(answer)
                    answered += 1
                    changed += answer != data
                except (TimeoutError, ConnectionRefusedError):
                    unanswered.add(data)
                time.sleep(0.02)
            report(datagrams=sent, answered=answered, changed=changed)


def light(address, base):
    with socket.create_connection((address, base + LIGHT), timeout=TIMEOUT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            times, second = [], time.monotonic()
            while time.monotonic() < second + 1:
                before = time.monotonic()
                connection.sendall(b"x")
                if not connection.recv(1):
                    raise OSError("the server closed the connection")
                times.append(time.monotonic() - before)
                time.sleep(0.01)
            report(times=[round(t * 1e6) for t in times])


# The driver, in the host namespace


class Load:
    """A process that makes one kind of load, and what it has reported."""

    def __init__(self, soak, name, where, arguments):
        self.soak, self.name, self.where, self.arguments = soak, name, where, arguments
        self.rng = random.Random(name + str(soak.seed))
        self.restarts = -1
        self.start()

    def start(self):
        self.restarts += 1
        self.end_at = time.monotonic() + self.rng.uniform(200, 400)
        arguments = [*self.arguments, str(self.rng.randrange(1 << 32))]
        command = self.soak.enter(self.where) + [sys.executable, os.path.abspath(__file__), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read, args=(self.process,), daemon=True)
        self.reader.start()

    def read(self, process):
        for line in process.stdout:
            self.soak.take(self.name, json.loads(line))

    def turn(self):
        if self.process.poll() is not None:
            self.soak.ended_early.append(f"{self.name}: {self.process.returncode}")
            self.start()
        elif time.monotonic() > self.end_at:
            self.end()
            self.start()

    def end(self):
        if self.arguments[0] == "client":
            self.process.terminate()
        else:
            self.process.kill()
        self.process.wait()
        self.reader.join()


class Soak:
    def __init__(self, arguments):
        self.arguments, self.seed = arguments, arguments.seed
        self.lock = threading.Lock()
        self.results, self.up, self.down = {}, {}, {}
        self.datagrams, self.answered, self.changed, self.ended_early = 0, 0, 0, []
        self.told = {"up": 0, "down": 0, "flows": 0, "lost": 0}
        self.times, self.samples = [], []

    def enter(self, where):
        if where == "host":
            return []
        namespaces = ["--user", "--preserve-credentials", "--net"] if where == "guest" else ["--net"]
        return ["nsenter", "--target", str(self.peer.pid if where == "peer" else self.guest), *namespaces]

    def take(self, name, fields):
        with self.lock:
            for what, count in fields.get("connections", {}).items():
                key = (name, what)
                self.results[key] = self.results.get(key, 0) + count
            self.up[name] = self.up.get(name, 0) + fields.get("up", 0)
            self.down[name] = self.down.get(name, 0) + fields.get("down", 0)
            self.datagrams += fields.get("datagrams", 0)
            self.answered += fields.get("answered", 0)
            self.changed += fields.get("changed", 0)
            self.times += fields.get("times", [])

    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.peer = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        own = os.stat("/proc/self/ns/net").st_ino
        await_(lambda: os.stat(f"/proc/{self.peer.pid}/ns/net").st_ino != own)
        for command in (
            "ip link set lo up",
            f"ip link add eth0 type veth peer name eth0 netns {self.peer.pid}",
            f"ip address add {HOST}/24 dev eth0",
            "ip link set eth0 up",
            f"nsenter -t {self.peer.pid} --net ip address add {PEER}/24 dev eth0",
            f"nsenter -t {self.peer.pid} --net ip link set eth0 up",
            f"nsenter -t {self.peer.pid} --net ip link set lo up",
            f"ip route add default via {GATEWAY}",
        ):
            subprocess.run(command.split(), check=True)
        self.api = os.path.join(self.folder.name, "api")
        pid = os.path.join(self.folder.name, "pid")
        ports = f"{1000 + TCP},{1000 + RESET}"
        self.pasta = subprocess.Popen([
            self.arguments.pasta, "--config-net", "--foreground", "--quiet", "--api-socket", self.api, "--pid", pid,
            "-t", ports, "-u", str(1000 + UDP), "-T", f"{100 + TCP},{100 + RESET}", "-U", str(100 + UDP), "--",
            "sh", "-c", f"echo $$ >{self.folder.name}/guest; exec sleep infinity",
        ])
        await_(lambda: os.path.exists(self.api) and text(f"{self.folder.name}/guest").strip())
        self.guest = child_of(self.pasta.pid)
        self.events = socket.socket(socket.AF_UNIX)
        self.events.connect(self.api)
        self.events.sendall(b'{"request":"subscribe","arguments":{"events":["end"]}}\n')
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()
        self.servers = []
        for where, base in (("peer", 0), ("host", 100), ("guest", 1000)):
            command = self.enter(where) + [sys.executable, os.path.abspath(__file__), "serve", str(base)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            server.stdout.readline()
            self.servers.append(server)
        self.begun = time.monotonic()
        self.sample()
        self.kinds = [kinds(self.pasta.pid)]
        rate = str(self.arguments.rate / len(LOADS))
        self.loads = [Load(self, name, where, ["client", address, str(base), rate])
                      for name, (where, address, base) in LOADS.items()]
        self.loads += [Load(self, "UDP " + name, where, ["datagrams", address, str(base)])
                       for name, (where, address, base) in LOADS.items()]
        self.loads += [Load(self, "resets " + name, where, ["resets", address, str(base)])
                       for name, (where, address, base) in LOADS.items()]
        self.loads.append(Load(self, "light", "guest", ["light", PEER, "0"]))

    def sample(self):
        fields = dict(line.split(":", 1) for line in text(f"/proc/{self.pasta.pid}/status").splitlines())
        with self.lock:
            times, self.times = sorted(self.times), []
            complete = sum(count for (_, what), count in self.results.items() if what == "complete")
            moved = sum(self.up.values()) + sum(self.down.values())
        self.samples.append((
            time.monotonic() - self.begun,
            int(fields["VmRSS"].split()[0]) / 1024,
            len(os.listdir(f"/proc/{self.pasta.pid}/fd")),
            quantile(times, 0.5) / 1000 if times else math.nan,
            quantile(times, 0.99) / 1000 if times else math.nan,
            complete,
            moved,
        ))

    def listen(self):
        """Adds up what pasta tells about the flows that have ended."""
        for line in self.events.makefile():
            event = json.loads(line)
            if event.get("event") == "lost":
                self.told["lost"] += event["count"]
            elif event.get("event") == "end" and event["protocol"] == "tcp":
                server = event["peer_port" if event["direction"] == "outbound" else "guest_port"]
                if server in (TCP, 100 + TCP, 1000 + TCP):
                    up, down = event["bytes_sent"], event["bytes_received"]
                    if event["direction"] == "inbound":
                        up, down = down, up
                    self.told["up"] += up
                    self.told["down"] += down
                    self.told["flows"] += 1

    def run(self):
        self.start()
        end = self.begun + self.arguments.minutes * 60
        next_sample = self.begun
        while time.monotonic() < end and self.pasta.poll() is None:
            next_sample += SAMPLE
            time.sleep(max(0, min(next_sample, end) - time.monotonic()))
            self.sample()
            for load in self.loads:
                load.turn()
            if self.arguments.out:
                self.write()
        return self.finish()

    def write(self):
        with open(self.arguments.out, "w") as file:
            file.write(f"# bench/soak.py, {version(self.arguments.pasta)}, kernel {os.uname().release}, "
                       f"{os.cpu_count()} processors, seed {self.seed}\n")
            file.write("seconds\tresident_mib\tdescriptors\tp50_ms\tp99_ms\tconnections\tbytes\n")
            for row in self.samples:
                file.write("\t".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row) + "\n")

    def finish(self):
        alive = self.pasta.poll() is None
        for load in self.loads:
            load.end()
        errors = [] if alive else [f"pasta ended: {self.pasta.returncode}"]
        for (name, what), count in sorted(self.results.items()):
            print(f"{name}: {count} connections {what}")
            if what != "complete":
                errors.append(f"{name}: {count} connections {what}")
        if alive:
            # UDP flows end after three minutes without a datagram.
            time.sleep(min(200, self.arguments.minutes * 60))
            self.sample()
            self.kinds.append(kinds(self.pasta.pid))
            self.pasta.terminate()
            print(f"pasta, after SIGTERM: status {self.pasta.wait()}")
            self.listener.join()
        up, down = sum(self.up.values()), sum(self.down.values())
        print(f"clients: {up} bytes sent, {down} received")
        print(f"pasta: {self.told['up']} bytes sent, {self.told['down']} received in {self.told['flows']} flows; events lost: {self.told['lost']}")
        if (up, down) != (self.told["up"], self.told["down"]):
            errors.append("the bytes do not balance")
        print(f"datagrams: {self.datagrams} sent, {self.answered} answered, {self.changed} changed")
        print(f"clients started again: {sum(load.restarts for load in self.loads)}")
        errors += ["datagrams changed"] * (self.changed > 0) + [f"ended early: {what}" for what in self.ended_early]
        for server in self.servers + [self.peer]:
            server.kill()
        # The first tenth is a start: tables reach their size.
        later = self.samples[len(self.samples) // 10:-1]
        for index, unit in ((1, "MiB"), (2, "descriptors"), (4, "ms of the 99th percentile")):
            slope, interval = growth([row[0] / 3600 for row in later], [row[index] for row in later])
            print(f"growth: {slope:+.3f} {unit} per hour, 95 % within {interval:.3f}")
        first, last = self.samples[0], self.samples[-1]
        print(f"before the first client: {first[1]:.1f} MiB, {first[2]} descriptors; after the last: {last[1]:.1f} MiB, {last[2]}")
        if alive:
            grown = {kind: count - self.kinds[0].get(kind, 0) for kind, count in self.kinds[1].items()}
            print("more descriptors than before:", {kind: count for kind, count in grown.items() if count > 0})
        for error in errors:
            print("ERROR", error)
        return 1 if errors else 0


def growth(x, y):
    """The slope of a straight line, and half of its confidence interval, from the means of 20 parts: neighbours are alike."""
    pairs = [(a, b) for a, b in zip(x, y) if not math.isnan(b)]
    size = max(1, len(pairs) // 20)
    parts = [pairs[at:at + size] for at in range(0, len(pairs), size)]
    x = [statistics.mean(a for a, _ in part) for part in parts]
    y = [statistics.mean(b for _, b in part) for part in parts]
    if len(x) < 3:
        return math.nan, math.nan
    slope, intercept = statistics.linear_regression(x, y)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y)) / (len(x) - 2)
    return slope, 2.1 * math.sqrt(rest / (statistics.pvariance(x) * len(x)))


def kinds(pid):
    """The number of open descriptors of each kind."""
    counts = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            kind = os.readlink(f"/proc/{pid}/fd/{name}").split(":[")[0]
        except OSError:
            continue
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def quantile(ordered, part):
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def version(program):
    return subprocess.run([program, "--version"], capture_output=True, text=True).stdout.splitlines()[0]


def text(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def child_of(parent):
    """A process of the guest: a child of pasta in other namespaces."""
    children = text(f"/proc/{parent}/task/{parent}/children").split()
    return next(int(child) for child in children if os.stat(f"/proc/{child}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino)


def await_(condition):
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("waited in vain")
        time.sleep(0.05)


def plot(source, target):
    """Draws three curves over the time: memory, descriptors, and round trips."""
    with open(source) as file:
        head, _, *lines = file.read().splitlines()
    rows = [[float(value) for value in line.split("\t")] for line in lines]
    width, height, left, gap = 720, 150, 70, 40
    minutes = rows[-1][0] / 60
    panels = (("resident memory, MiB", (1,)), ("open descriptors", (2,)), ("round trip of a light connection, ms: median, 99th percentile", (3, 4)))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {3 * (height + gap) + 20}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>']
    for number, (title, columns) in enumerate(panels):
        top = number * (height + gap) + 24
        values = [row[column] for row in rows for column in columns if not math.isnan(row[column])]
        high = max(values) * 1.1 or 1
        step = 10 ** math.floor(math.log10(high) - 1)
        high = 4 * step * math.ceil(high / step / 4)
        out.append(f'<text x="{left}" y="{top - 8}">{title}</text>')
        for tick in range(5):
            y = top + height - height * tick / 4
            out.append(f'<path d="M{left} {y:.1f}H{width - 10}" stroke="#ddd"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{high * tick / 4:.{1 if high < 100 else 0}f}</text>')
        for column, colour in zip(columns, ("#1f6f8b", "#d1495b")):
            points = " ".join(
                f"{left + (width - 10 - left) * row[0] / rows[-1][0]:.1f},{top + height - height * row[column] / high:.1f}"
                for row in rows if not math.isnan(row[column]))
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    for tick in range(7):
        x = left + (width - 10 - left) * tick / 6
        anchor = "end" if tick == 6 else "middle"
        out.append(f'<text x="{x:.1f}" y="{3 * (height + gap) + 12}" text-anchor="{anchor}">{minutes * tick / 6:.0f} min</text>')
    out.append(f"<title>{head.lstrip('# ')}</title></svg>")
    with open(target, "w") as file:
        file.write("\n".join(out) + "\n")


def main():
    role, rest = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    # The last argument of a client is its seed.
    roles = {
        "serve": lambda: serve(int(rest[0])),
        "client": lambda: client(rest[0], int(rest[1]), rest[3], float(rest[2])),
        "datagrams": lambda: datagrams(rest[0], int(rest[1]), rest[2]),
        "resets": lambda: resets(rest[0], int(rest[1]), rest[2]),
        "light": lambda: light(rest[0], int(rest[1])),
        "--plot": lambda: plot(*rest),
    }
    if role in roles:
        return roles[role]()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pasta", type=os.path.realpath)
    parser.add_argument("--minutes", type=float, default=180)
    parser.add_argument("--out", type=os.path.abspath)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=200, help="TCP connections a second, all kinds together")
    arguments = parser.parse_args()
    if not os.environ.get("SOAK_INSIDE"):
        os.environ["SOAK_INSIDE"] = "1"
        unshare = ["unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"]
        unshare += [] if os.getuid() == 0 else ["--user", "--map-root-user"]
        os.execvp("unshare", unshare + [sys.executable] + sys.argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return Soak(arguments).run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(1)
