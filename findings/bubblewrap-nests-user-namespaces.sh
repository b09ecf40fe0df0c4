#!/bin/bash
# bubblewrap with --dev or --disable-userns leaves its command in a user namespace that does not own the command's
# network namespace.
#
# bwrap makes a user namespace and the network namespace, and then, for these options, a second user namespace inside
# the first. (--dev needs user 0 to mount devpts. With --uid 0 the first namespace has it, and there is no second.)
# /proc/PID/ns/user is the second one. Joining it gives no right over the network namespace, so `nsenter -U -n` fails
# although the caller is the user who started the sandbox. The ioctl NS_GET_USERNS on /proc/PID/ns/net returns the
# owner, and with that one joined the network namespace can be entered.
#
# Seen with bubblewrap 0.8.0-2+deb12u1, util-linux 2.38.1, Linux 6.18:
#   plain: process and owner are the same user namespace: nsenter -U -n works
#   --dev: process and owner differ: nsenter -U -n fails, the owner's user namespace works
#   --dev --uid 0: process and owner are the same user namespace: nsenter -U -n works
#   --disable-userns: process and owner differ: nsenter -U -n fails, the owner's user namespace works
#
# For passt-rs: `pasta PID` joins the user namespace that owns the network namespace, never just /proc/PID/ns/user.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }

folder=$(mktemp -d) || exit 77
sandbox=
# shellcheck disable=SC2317
cleanup() {
    [ -z "$sandbox" ] || kill "$sandbox" 2>/dev/null
    rm -rf "$folder"
}
trap cleanup EXIT
chmod 755 "$folder"
cd "$folder" || exit 77

for tool in apt-get dpkg /usr/bin/python3 nsenter setpriv unshare; do
    command -v "$tool" >/dev/null || cannot "no $tool"
done
if [ "$(id -u)" = 0 ]; then
    as_user=(setpriv --reuid 65534 --regid 65534 --clear-groups)
else
    as_user=()
fi
apt-get download -q bubblewrap=0.8.0-2+deb12u1 >log 2>&1 || cannot "no bubblewrap 0.8.0-2+deb12u1"
dpkg -x bubblewrap_*.deb root || cannot "dpkg -x"
"${as_user[@]}" unshare -Urn true 2>/dev/null || cannot "user namespaces are not allowed"
"$folder/root/usr/bin/bwrap" --version
nsenter --version
uname -sr

cat >owner.py <<'PY'
# The user namespace that owns a network namespace, and a command run with both joined.
import fcntl, os, sys, ctypes
NS_GET_USERNS = 0xB701
libc = ctypes.CDLL(None, use_errno=True)
network = os.open(f"/proc/{sys.argv[1]}/ns/net", os.O_RDONLY)
owner = fcntl.ioctl(network, NS_GET_USERNS)
if len(sys.argv) == 2:
    print(os.readlink(f"/proc/self/fd/{owner}"))
    sys.exit()
for descriptor in (owner, network):
    if libc.setns(descriptor, 0) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
PY

changed=0
# NAME EXPECTED OPTION...: starts a sandbox with the options and compares.
try() {
    local name=$1 expected=$2 outer pid user network owner relation direct by_owner
    shift 2
    : >info
    chmod 666 info
    "${as_user[@]}" "$folder/root/usr/bin/bwrap" --unshare-user --unshare-net --bind / / "$@" --info-fd 8 \
        -- sleep 60 8>info &
    outer=$!
    for _ in $(seq 100); do
        pid=$(sed -n 's/.*"child-pid": \([0-9]*\).*/\1/p' info)
        [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = sleep ] && break
        sleep 0.05
    done
    [ -n "$pid" ] || cannot "bwrap $* does not start"
    sandbox=$pid
    user=$(readlink "/proc/$pid/ns/user")
    network=$(readlink "/proc/$pid/ns/net")
    owner=$("${as_user[@]}" /usr/bin/python3 owner.py "$pid")
    [ "$user" = "$owner" ] && relation='are the same user namespace' || relation=differ
    direct=fails
    [ "$("${as_user[@]}" nsenter -t "$pid" -U --preserve-credentials -n readlink /proc/self/ns/net 2>/dev/null)" = "$network" ] &&
        direct=works
    by_owner=fails
    [ "$("${as_user[@]}" /usr/bin/python3 owner.py "$pid" readlink /proc/self/ns/net 2>/dev/null)" = "$network" ] && by_owner=works
    echo "$name: process and owner $relation: nsenter -U -n $direct, the owner's user namespace $by_owner"
    [ "$relation/$direct/$by_owner" = "$expected" ] || changed=1
    kill "$pid"
    wait "$outer" 2>/dev/null
    sandbox=
}

try plain 'are the same user namespace/works/works'
try --dev 'differ/fails/works' --dev /dev
try '--dev --uid 0' 'are the same user namespace/works/works' --dev /dev --uid 0 --gid 0
try --disable-userns 'differ/fails/works' --disable-userns
[ "$changed" = 0 ] && echo 'as described' || echo 'CHANGED'
exit "$changed"
