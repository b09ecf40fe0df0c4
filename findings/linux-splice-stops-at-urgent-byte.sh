#!/bin/bash
# Linux TCP: splice(2) never passes an urgent byte, with or without SO_OOBINLINE, and after the peer's FIN it returns 0
# there, as at the end of the stream, although bytes follow. And without SO_OOBINLINE, SO_PEEK_OFF loses count.
#
# tcp(7) says that a read stops at the urgent byte, which sounds as if the next call would continue. read(2) and recv(2) do.
# splice(2) returns EAGAIN at the mark for ever, on a socket that poll(2) reports as readable. A proxy that copies by splice
# stalls; if the peer has also closed, it passes on an orderly end and loses the rest. FIONREAD still counts the bytes.
# A proxy that looks ahead with MSG_PEEK and SO_PEEK_OFF, without SO_OOBINLINE, is shown one byte twice: the urgent byte
# is skipped in what is copied, and the offset moves by what was copied.
#
# Seen with Linux 6.18:
#   inline=0 open: splice 3, EAGAIN, EAGAIN; unread 0
#   inline=0 closed: splice 3, 0, 0; unread 0; then recv b'defghi'
#   inline=0 peeks: b'abc', b'defghi', b'i'
#   inline=1 open: splice 3, EAGAIN, EAGAIN; unread 7
#   inline=1 closed: splice 3, 0, 0; unread 7; then recv b'!defghi'
#   inline=1 peeks: b'abc', b'!defghi'
#
# For passt-rs: all TCP sockets have SO_OOBINLINE, and where splice(2) stops, recv(2) decides whether it is the end.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
uname -sr
# shellcheck disable=SC2016
unshare -Urn sh -c 'ip link set lo up && exec python3 -c "$1"' sh '
import ctypes, fcntl, os, select, socket, struct, sys, time
OOBINLINE, PEEK_OFF, FIONREAD = 10, 42, 0x541b
libc = ctypes.CDLL(None, use_errno=True)

def pair(inline, close):
    listener = socket.create_server(("127.0.0.1", 0))
    a = socket.create_connection(listener.getsockname())
    b = listener.accept()[0]
    b.setsockopt(socket.SOL_SOCKET, OOBINLINE, inline)
    b.setblocking(False)
    a.sendall(b"abc")
    a.send(b"!", socket.MSG_OOB)
    a.sendall(b"defghi")
    poll = select.poll()
    poll.register(b, select.POLLPRI | select.POLLRDHUP)
    if close:
        a.shutdown(socket.SHUT_WR)
    wanted = select.POLLPRI | (select.POLLRDHUP if close else 0)
    end = time.monotonic() + 10
    while not (events := poll.poll(1000)) or events[0][1] & wanted != wanted:
        assert time.monotonic() < end, "it does not arrive"
    # The last bytes, too: in ten bytes of the stream the mark is the fourth.
    b.setsockopt(socket.SOL_SOCKET, OOBINLINE, 1)
    while unread(b) < 10:
        assert time.monotonic() < end, "it does not arrive"
    b.setsockopt(socket.SOL_SOCKET, OOBINLINE, inline)
    return a, b

def unread(s):
    return struct.unpack("i", fcntl.ioctl(s, FIONREAD, bytes(4)))[0]

def splice(s):
    read, write = os.pipe()
    for _ in range(3):
        n = libc.splice(s.fileno(), None, write, None, 1000, 2)
        yield str(n) if n >= 0 else {11: "EAGAIN"}.get(ctypes.get_errno(), "error")

lines = []
for inline in 0, 1:
    a, b = pair(inline, False)
    lines.append(f"inline={inline} open: splice {chr(44).join(splice(b))}; unread {unread(b)}")
    a, b = pair(inline, True)
    lines.append(f"inline={inline} closed: splice {chr(44).join(splice(b))}; unread {unread(b)}; then recv {b.recv(100)}")
    a, b = pair(inline, False)
    try:
        b.setsockopt(socket.SOL_SOCKET, PEEK_OFF, 0)
    except OSError:
        print("no SO_PEEK_OFF for TCP before Linux 6.9")
        sys.exit(77)
    peeks = []
    try:
        while True:
            peeks.append(str(b.recv(100, socket.MSG_PEEK)))
    except BlockingIOError:
        pass
    lines.append(f"inline={inline} peeks: {chr(44).join(peeks)}")
print(*lines, sep="\n")
expected = """inline=0 open: splice 3,EAGAIN,EAGAIN; unread 0
inline=0 closed: splice 3,0,0; unread 0; then recv b{q}defghi{q}
inline=0 peeks: b{q}abc{q},b{q}defghi{q},b{q}i{q}
inline=1 open: splice 3,EAGAIN,EAGAIN; unread 7
inline=1 closed: splice 3,0,0; unread 7; then recv b{q}!defghi{q}
inline=1 peeks: b{q}abc{q},b{q}!defghi{q}""".replace("{q}", chr(39))
sys.exit("\n".join(lines) != expected)
'
