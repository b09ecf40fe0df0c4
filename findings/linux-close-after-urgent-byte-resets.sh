#!/bin/bash
# Linux TCP: a server that has received its client's urgent byte by recv(MSG_OOB), answers, and closes, ends the
# connection with a reset.
#
# recv(MSG_OOB) copies the byte, but leaves it in the receive queue. close(2) finds a byte there that was never read, and
# so sends RST instead of FIN (RFC 2525 §2.17). The part of the answer that has not arrived by then is lost, and the client
# reads ECONNRESET where it expects the end. One plain read before the close, which returns EAGAIN because there is no
# data, removes the byte from the queue, and the close is orderly. With SO_OOBINLINE it always is.
#
# Seen with Linux 6.18:
#   MSG_OOB: received b'!', the client gets b'answer', then ECONNRESET
#   MSG_OOB, then a read: received b'!', the client gets b'answer', then b''
#   SO_OOBINLINE: received b'!', the client gets b'answer', then b''
#
# For passt-rs: its sockets read inline, so the reset is never its own; a guest's server causes it with and without us. A
# test that closes after an urgent byte must read once before.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
uname -sr
# shellcheck disable=SC2016
unshare -Urn sh -c 'ip link set lo up && exec python3 -c "$1"' sh '
import select, socket, sys
OOBINLINE = 10
lines = []
for how in "MSG_OOB", "MSG_OOB, then a read", "SO_OOBINLINE":
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    inline = how == "SO_OOBINLINE"
    server.setsockopt(socket.SOL_SOCKET, OOBINLINE, inline)
    client.send(b"!", socket.MSG_OOB)
    poll = select.poll()
    poll.register(server, select.POLLPRI)
    assert poll.poll(10_000), "it does not arrive"
    byte = server.recv(1, 0 if inline else socket.MSG_OOB)
    if "read" in how:
        try:
            server.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
    server.sendall(b"answer")
    server.close()
    client.settimeout(10)
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    assert poll.poll(10_000), "it does not end"
    got = []
    for _ in range(2):
        try:
            got.append(str(client.recv(100)))
        except ConnectionResetError:
            got.append("ECONNRESET")
    both = ", then ".join(got)
    lines.append(f"{how}: received {byte}, the client gets {both}")
print(*lines, sep="\n")
q = chr(39)
expected = [
    f"MSG_OOB: received b{q}!{q}, the client gets b{q}answer{q}, then ECONNRESET",
    f"MSG_OOB, then a read: received b{q}!{q}, the client gets b{q}answer{q}, then b{q}{q}",
    f"SO_OOBINLINE: received b{q}!{q}, the client gets b{q}answer{q}, then b{q}{q}",
]
sys.exit(lines != expected)
'
