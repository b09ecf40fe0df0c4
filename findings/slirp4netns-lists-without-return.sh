#!/bin/bash
# The reply of slirp4netns to list_hostfwd has no "return", unlike its manual and unlike its other replies.
#
# The API socket answers a request with an object in JSON. The manual says {"return": {"entries": [...]}} for
# list_hostfwd, and a client that is written by it finds no entries. The replies to add_hostfwd and remove_hostfwd are as
# in the manual.
#
# Seen with slirp4netns 1.2.0-1 (libslirp 4.7.0), Linux 6.18:
#   add_hostfwd: {"return":{"id":1}}
#   list_hostfwd: {"entries":[{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":18080,...}]}
#
# For passt-rs: its slirp4netns sends the entries in both places.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }

folder=$(mktemp -d) || exit 77
holder=
program=
# shellcheck disable=SC2317
cleanup() {
    [ -z "$program" ] || kill "$program" 2>/dev/null
    [ -z "$holder" ] || kill "$holder" 2>/dev/null
    rm -rf "$folder"
}
trap cleanup EXIT
cd "$folder" || exit 77

for tool in apt-get dpkg unshare socat; do
    command -v "$tool" >/dev/null || cannot "no $tool"
done
apt-get download -q slirp4netns=1.2.0-1 libslirp0=4.7.0-1 >log 2>&1 || cannot "no slirp4netns 1.2.0-1 with libslirp 4.7.0-1"
for package in ./*.deb; do
    dpkg -x "$package" root || cannot "dpkg -x"
done
library=$(dirname "$(find root -name 'libslirp.so.0' | head -1)")
slirp() { LD_LIBRARY_PATH=$library exec root/usr/bin/slirp4netns "$@"; }
(slirp --version) | head -1
uname -sr

unshare --user --map-root-user --net sleep 60 &
holder=$!
for _ in $(seq 100); do
    [ "$(readlink "/proc/$holder/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break
    sleep 0.05
done
mkfifo ready
(slirp -r 3 -a "$folder/api" "$holder" tap0 3>ready >>log 2>&1) &
program=$!
read -r -n1 -t 20 byte <ready
[ "${byte:-}" = 1 ] || cannot "slirp4netns does not start: $(cat log)"

ask() { printf '%s' "$1" | socat -t5 - "UNIX-CONNECT:$folder/api"; }
added=$(ask '{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 18080, "guest_addr": "10.0.2.100", "guest_port": 80}}')
listed=$(ask '{"execute": "list_hostfwd"}')
echo "add_hostfwd: $added"
echo "list_hostfwd: $listed"
case $added in '{"return":{"id":'*) ;; *) cannot "the port can't be forwarded" ;; esac
case $listed in
    '{"entries":'*) echo 'as described' ;;
    *) echo 'CHANGED'; exit 1 ;;
esac
