#!/usr/bin/env python3
"""Records a session on a terminal: `pasta` that refuses what no rule allows, and `pesto top`. `bench/screen.py --film` draws it.

Usage: bench/session.py PASTA PESTO FOLDER      (writes FOLDER/SECONDS.screen for each change of the screen)

Needs tmux, curl, iproute2, util-linux, and the right to create user namespaces. Names and servers exist in these namespaces only.
"""

import http.server
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

COLUMNS, LINES = 100, 22
NAMES = {"index.example.org": "203.0.113.1", "files.example.org": "203.0.113.2", "tracker.example.com": "203.0.113.9"}
TMUX = ["tmux", "-L", f"session{os.getpid()}", "-f", "/dev/null"]


def main():
    if sys.argv[1] == "servers":
        return servers()
    if not os.environ.get("BENCH_SESSION_INSIDE"):
        os.environ["BENCH_SESSION_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "-Urnm", sys.executable, __file__] + sys.argv[1:])
    pasta, pesto = [os.path.realpath(path) for path in sys.argv[1:3]]
    with tempfile.TemporaryDirectory(prefix="passt-") as folder:
        # Another host: the addresses of this one are refused, even if a name that is allowed leads there.
        peer = subprocess.Popen(
            ["unshare", "-n", sys.executable, __file__, "servers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert peer.stdout.readline() == b"begun\n"
        ip(
            "link set lo up", "link add host0 type veth peer name peer0", "address add 192.0.2.2/24 dev host0", "link set host0 up",
            f"link set peer0 netns {peer.pid}", "route add default via 192.0.2.1",
        )
        peer.stdin.write(b"\n")
        peer.stdin.flush()
        assert peer.stdout.readline() == b"ready\n"
        resolvers = pathlib.Path(folder, "resolv.conf")
        resolvers.write_text("nameserver 192.0.2.1\n")
        subprocess.run(["mount", "--bind", resolvers, os.path.realpath("/etc/resolv.conf")], check=True)
        programs = pathlib.Path(folder, "bin")
        programs.mkdir()
        for name, program in (("pasta", pasta), ("pesto", pesto)):
            programs.joinpath(name).symlink_to(program)
        # What an installer may do: it fetches, it sends, and it asks for what it may not reach.
        installer = programs / "installer"
        installer.write_text(
            "#!/bin/sh\n"
            "curl -s -o /dev/null http://index.example.org/large &\n"
            "curl -s -o /dev/null http://files.example.org/large &\n"
            "while head -c 200000 /dev/zero; do sleep 0.1; done | curl -s -T - http://files.example.org/ &\n"
            "while sleep 0.7; do curl -s -m 2 http://tracker.example.com/; done\n"
        )
        installer.chmod(0o755)
        Session(programs, folder, pathlib.Path(sys.argv[3])).play()
        peer.stdin.close()
        peer.wait()


def ip(*commands):
    for command in commands:
        subprocess.run(["ip"] + command.split(), check=True)


def servers():
    """In the namespace of the other host: a name server and web servers."""
    print("begun", flush=True)
    sys.stdin.readline()
    ip(
        "link set lo up", "address add 192.0.2.1/24 dev peer0", "link set peer0 up",
        *(f"address add {address}/32 dev lo" for address in NAMES.values()),
    )
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("192.0.2.1", 53))
    threading.Thread(target=answer, args=[names], daemon=True).start()
    web = http.server.ThreadingHTTPServer(("", 80), Pages)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


def answer(names):
    """Answers questions for addresses. Each question has one name, without compression."""
    while True:
        question, client = names.recvfrom(512)
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode())
            at += 1 + question[at]
        kind = struct.unpack("!H", question[at + 1 : at + 3])[0]
        address = NAMES.get(".".join(labels).lower())
        record = b""
        if address and kind == 1:
            record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address)
        flags = 0x8180 if address else 0x8183
        head = question[:2] + struct.pack("!HHHHH", flags, 1, 1 if record else 0, 0, 0)
        names.sendto(head + question[12 : at + 5] + record, client)


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = f"hello from {self.headers['Host']}\n".encode()
        large = self.path == "/large"
        self.send_response(200)
        self.send_header("Content-Length", str(10**9 if large else len(text)))
        self.end_headers()
        self.wfile.write(text)
        while large:
            self.wfile.write(bytes(100_000))
            time.sleep(0.02)

    def do_PUT(self):
        while self.rfile.read(1000):
            pass

    def log_message(self, *_):
        pass


class Session:
    """A shell of an ordinary user on a terminal (tmux)."""

    def __init__(self, programs, folder, screens):
        self.screens = screens
        screens.mkdir(parents=True, exist_ok=True)
        environment = [
            f"PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin", f"XDG_RUNTIME_DIR={folder}", "PS1=$ ", f"HOME={folder}", "LC_ALL=C.UTF-8", "SHELL=/bin/bash",
        ]
        user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
        shell = ["env", "-i", "TERM=screen", *environment, *user, "bash", "--norc", "--noprofile"]
        subprocess.run(
            TMUX + ["new-session", "-d", "-c", folder, "-x", str(COLUMNS), "-y", str(LINES), *shell, ";", "set", "-g", "status", "off"], check=True
        )
        subprocess.run(TMUX + ["resize-window", "-x", str(COLUMNS), "-y", str(LINES)], check=True)
        self.begun = time.monotonic()
        self.last = None

    def play(self):
        try:
            self.wait(1)
            self.type("pasta --config-net --allow '*.example.org' -- sh", 1.5)
            self.type("curl http://index.example.org/", 2)
            self.type("curl http://tracker.example.com/", 3)
            self.type("curl http://203.0.113.9/", 3)
            self.type("exit", 1.5)
            self.type("clear", 0.5)
            self.type(
                "pasta --config-net --allow '*.example.org' -- installer 2>log &", 1
            )
            self.type("pesto top", 6)
            subprocess.run(TMUX + ["send-keys", "q"], check=True)
            self.wait(0.5)
            self.type("tail -n 4 log", 3)
        finally:
            subprocess.run(TMUX + ["kill-server"], check=False)

    def type(self, text, seconds):
        for at in range(0, len(text), 3):
            subprocess.run(TMUX + ["send-keys", "-l", "--", text[at : at + 3]], check=True)
            self.wait(0.05)
        subprocess.run(TMUX + ["send-keys", "Enter"], check=True)
        self.wait(seconds)

    def wait(self, seconds):
        """Records each change of the screen for this time."""
        end = time.monotonic() + seconds
        while True:
            screen = subprocess.run(TMUX + ["capture-pane", "-e", "-p"], check=True, capture_output=True).stdout
            now = time.monotonic()
            if screen != self.last:
                self.screens.joinpath(f"{now - self.begun:.3f}.screen").write_bytes(screen)
                self.last = screen
            if now > end:
                return
            time.sleep(0.05)


main()
