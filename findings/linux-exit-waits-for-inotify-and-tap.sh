#!/bin/bash
# Linux: a process that ever watched a file by inotify, or that holds a tap device, ends 5 to 40 ms late.
#
# close(2) of an inotify instance with a watch waits for a grace period of the kernel (SRCU), and close(2) of the last
# descriptor of a tap device waits until the device is unregistered. At the end of a process the kernel closes the
# descriptors before it reports the end, so the parent waits as well: for a short command behind such a process, this is
# most of its time. Removing the watch before the close does not help. An inotify instance without watches closes at once. A
# tap that was made persistent (TUNSETPERSIST) closes at once, and goes with its network namespace, which the kernel takes
# down in the background.
#
# Seen with Linux 6.18 (median of 21, in ms):
#   inotify, no watch: 0.0
#   inotify, one watch: 11.3
#   inotify, watch removed: 11.2
#   tap: 23.6
#   tap, persistent: 0.1
#
# For passt-rs: resolv.conf is watched only from one second after the start, and the tap of a spawned command is left to the
# command's namespace.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v python3 >/dev/null || cannot "no python3"
[ -w /dev/net/tun ] || cannot "no access to /dev/net/tun"
unshare -Urn true 2>/dev/null || cannot "user and network namespaces are not allowed"
uname -sr
exec unshare -Urn python3 -c '
import ctypes, fcntl, os, statistics, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
IN_CLOSE_WRITE, IFF_TAP, IFF_NO_PI, TUNSETIFF, TUNSETPERSIST = 8, 2, 0x1000, 0x400454CA, 0x400454CB

def close(fd):
    begun = time.monotonic()
    os.close(fd)
    return (time.monotonic() - begun) * 1e3

def inotify(watch, remove=False):
    fd = libc.inotify_init1(0)
    if watch:
        number = libc.inotify_add_watch(fd, b"/tmp", IN_CLOSE_WRITE)
        if number < 0:
            sys.exit("cannot watch /tmp")
        if remove:
            libc.inotify_rm_watch(fd, number)
    return close(fd)

def tap(persist):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"", IFF_TAP | IFF_NO_PI))
    if persist:
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    return close(fd)

same = True
for name, slow, call in [
    ("inotify, no watch", False, lambda: inotify(False)),
    ("inotify, one watch", True, lambda: inotify(True)),
    ("inotify, watch removed", True, lambda: inotify(True, True)),
    ("tap", True, lambda: tap(False)),
    ("tap, persistent", False, lambda: tap(True)),
]:
    median = statistics.median(call() for _ in range(21))
    print(f"{name}: {median:.1f}")
    same &= (median > 2) == slow
sys.exit(0 if same else "the behaviour has changed")
'
