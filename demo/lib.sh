# Common to the demonstrations; source it. A host (192.0.2.10, 2001:db8:1::10), a peer (192.0.2.1 and ::1, also
# 198.51.100.7 beyond it), and pasta as an ordinary user of the host.
# shellcheck shell=bash disable=SC2034,SC2317
set -u
: "${PASTA:?PASTA=path of the program}"
PASTA=$(realpath "$PASTA")
DEMO_USER=${DEMO_USER:-nobody}
ID=demo$$
H=$ID-host
P=$ID-peer
T=$(mktemp -d "/var/tmp/$ID-XXXXXX")
chown "$DEMO_USER" "$T"
chmod 1777 "$T"
fails=0
HELD=

say() { echo "-- $*"; }
pass() { echo "PASS $*"; }
fail() {
    echo "FAIL $*"
    fails=$((fails + 1))
}
# NAME EXPECTED SEEN
is() { if [ "$2" = "$3" ]; then pass "$1: $3"; else fail "$1: expected '$2', got '$3'"; fi; }
# NAME REGEX TEXT
like() { if grep -Eqs -- "$2" <<<"$3"; then pass "$1"; else fail "$1: expected /$2/, got '$(head -c 400 <<<"$3")'"; fi; }
finish() { [ "$fails" = 0 ]; exit $?; }
# TOOL=PACKAGE...
need() {
    local tool
    for tool in "$@"; do
        command -v "${tool%%=*}" >/dev/null || {
            echo "SKIP $(basename "$0"): no ${tool%%=*} (package ${tool#*=})"
            exit 0
        }
    done
}
host() { ip netns exec "$H" "$@"; }
peer() { ip netns exec "$P" "$@"; }
# As the ordinary user, on the host.
user() { host setpriv --reuid "$DEMO_USER" --regid "$(id -g "$DEMO_USER")" --clear-groups env HOME="$T" "$@"; }
# Waits for a condition, a command, for at most 20 s.
await() {
    local _
    for _ in $(seq 200); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "waited in vain for: $*"
    return 1
}
# NAMESPACE PROTOCOL PORT
listens() { [ -n "$(ip netns exec "$1" ss -Hln "--$2" "sport = :$3")" ]; }
guest_listens() { [ -n "$(guest ss -Hln "--$1" "sport = :$2")" ]; }
below() {
    local child
    for child in $(pgrep -P "$1"); do
        echo "$child"
        below "$child"
    done
}
cleanup() {
    exec 2>/dev/null
    local ns pid all=
    for ns in $(ip netns list | awk '{ print $1 }' | grep "^$ID-"); do
        for pid in $(ip netns pids "$ns"); do all="$all $pid $(below "$pid")"; done
    done
    for pid in $HELD; do
        ns=$(readlink "/proc/$pid/ns/net") || continue
        for process in /proc/[0-9]*; do
            [ "$(readlink "$process/ns/net" 2>/dev/null)" = "$ns" ] && all="$all ${process#/proc/}"
        done
    done
    # shellcheck disable=SC2086
    [ -z "$all" ] || kill -9 $all 2>/dev/null
    for ns in $(ip netns list | awk '{ print $1 }' | grep "^$ID-"); do
        ip netns del "$ns"
        rm -rf "/etc/netns/$ns"
    done
    rm -rf "$T"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

network() {
    ip netns add "$H"
    ip netns add "$P"
    ip link add eth0 netns "$H" type veth peer name eth0 netns "$P"
    local ns
    for ns in "$H" "$P"; do
        ip -n "$ns" link set lo up
        ip -n "$ns" link set eth0 up
    done
    ip -n "$H" addr add 192.0.2.10/24 dev eth0
    ip -n "$H" addr add 2001:db8:1::10/64 dev eth0 nodad
    ip -n "$P" addr add 192.0.2.1/24 dev eth0
    ip -n "$P" addr add 2001:db8:1::1/64 dev eth0 nodad
    ip -n "$P" addr add 198.51.100.7/32 dev lo
    ip -n "$H" route add default via 192.0.2.1
    ip -n "$H" route add default via 2001:db8:1::1
    mkdir -p "/etc/netns/$H"
    echo 'nameserver 192.0.2.1' >"/etc/netns/$H/resolv.conf"
    host sysctl -qw net.ipv4.ping_group_range='0 2147483647'
}
# A namespace of the user's, with pasta on it. Arguments: pasta's. Sets GUEST.
guest_with() {
    say "pasta --config-net --no-map-gw $*"
    ip netns exec "${ON:-$H}" setpriv --reuid "$DEMO_USER" --regid "$(id -g "$DEMO_USER")" --clear-groups \
        unshare -Urn sh -c "echo \$\$ >$T/holder; exec sleep 300" &
    await test -s "$T/holder"
    GUEST=$(cat "$T/holder")
    rm "$T/holder"
    HELD="$HELD $GUEST"
    ip netns exec "${ON:-$H}" setpriv --reuid "$DEMO_USER" --regid "$(id -g "$DEMO_USER")" --clear-groups \
        "$PASTA" --config-net -q --no-map-gw "$@" "$GUEST" || fail "pasta does not start"
}
guest() { nsenter -t "${IN:-$GUEST}" -U -n "$@"; }
