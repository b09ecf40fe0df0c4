#!/bin/bash
# The accepted end of a UNIX stream connection belongs to the network namespace of the client, not to that of the listener,
# although both ends are otherwise the server's: its descriptor, its buffers, its credentials. The client's namespace is that
# in which it called socket(2). If it changes its namespace before connect(2), that does not matter.
#
# So a server learns by one getsockopt(2) where a client is: SO_NETNS_COOKIE (Linux 5.14) of the accepted socket. unix(7) and
# socket(7) do not mention it. The peer's process (SO_PEERCRED) does not tell: it may have ended, or may have moved.
#
# Seen with Linux 6.18:
#   client in the same namespace: the listener's
#   client in another namespace: another
#   socket(2) in the same namespace, connect(2) in another: the listener's
#   socket(2) in another namespace, connect(2) in the same: another
#
# For passt-rs: the API socket that passt and pasta make by themselves serves only clients of the namespace in which they were
# started, although the guest's processes see its file and have the same user (docs/design/api.md).
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }

[ "$(id -u)" = 0 ] || cannot "not root"
command -v /usr/bin/python3 >/dev/null || cannot "no python3"
folder=$(mktemp -d) || exit 77
trap 'rm -rf "$folder"' EXIT
uname -sr

cat >"$folder/try.py" <<'PY'
import ctypes, os, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET, SO_NETNS_COOKIE = 0x40000000, 71
path = sys.argv[1]

def cookie(one):
    return struct.unpack("Q", one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]

def unshare():
    if libc.unshare(CLONE_NEWNET) != 0:
        os._exit(77)

def client(*steps):
    """Runs the steps in a child, and returns the cookie of the accepted socket."""
    child = os.fork()
    if child == 0:
        sock = None
        for step in steps:
            if step == "socket":
                sock = socket.socket(socket.AF_UNIX)
            elif step == "leave":
                unshare()
            elif step == "return":
                libc.setns(home, CLONE_NEWNET)
        sock.connect(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        sys.exit(77)
    accepted, _ = listener.accept()
    return cookie(accepted)

home = os.open("/proc/self/ns/net", os.O_RDONLY)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
try:
    ours = cookie(listener)
except OSError:
    print("cannot try it here: no SO_NETNS_COOKIE")
    sys.exit(77)

changed = 0
for what, steps, same in [
    ("client in the same namespace", ["socket"], True),
    ("client in another namespace", ["leave", "socket"], False),
    ("socket(2) in the same namespace, connect(2) in another", ["socket", "leave"], True),
    ("socket(2) in another namespace, connect(2) in the same", ["leave", "socket", "return"], False),
]:
    seen = client(*steps) == ours
    print(f"{what}: {'the listener' + chr(39) + 's' if seen else 'another'}")
    changed |= seen != same
sys.exit(changed)
PY

# A connected client's end may close before accept(2): the connection waits in the backlog.
/usr/bin/python3 "$folder/try.py" "$folder/s"
status=$?
[ "$status" = 77 ] && cannot "no network namespaces"
[ "$status" = 0 ] && echo 'as described' || echo 'CHANGED'
exit "$status"
