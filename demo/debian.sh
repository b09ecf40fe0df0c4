# Debian packages for an ordinary user; source it. Nothing is installed: packages are unpacked in $W/root.
# shellcheck shell=bash
set -euo pipefail
W=$(mktemp -d)
HELD=()

say() { printf '\n== %s\n' "$*"; }
die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}
cleanup() {
    local pid
    # In reverse order: QEMU before passt.
    for pid in $(printf '%s\n' "${HELD[@]}" | tac); do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

# Sets PROGRAM, in capitals, to the path of a program: given by that variable, built here, or installed.
program() {
    local name=$1 variable=${1^^} place
    for place in "${!variable:-}" {"$(dirname "$0")/..","${CARGO_TARGET_DIR:-/nonexistent}"}/{target/,}{release,debug}/"$name" \
        "$(command -v "$name" || true)"; do
        if [ -x "$place" ] && "$place" --version 2>/dev/null | grep -q passt-rs; then
            printf -v "$variable" %s "$(realpath "$place")"
            return
        fi
    done
    die "no $name: build it (cargo build --release) or name it ($variable=path $0)"
}

# apt-get with folders of its own, so that it needs no privilege. `lists` comes first; it takes the machine's lists if there
# are some.
apt() { apt-get -qq "${APT[@]}" "$@" </dev/null; }
apt_cache() { apt-cache "${APT[@]}" "$@"; }
lists() {
    local lists=/var/lib/apt/lists
    compgen -G "$lists/*_Packages*" >/dev/null || lists=$W/apt/lists
    mkdir -p "$W/apt/"{lists/partial,cache/archives/partial}
    APT=(-o Dir::State::lists="$lists" -o Dir::Cache="$W/apt/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
    [ "$lists" = /var/lib/apt/lists ] || apt update
}
# PACKAGE...: these packages alone.
fetch() { (mkdir -p "$W/debs" "$W/root" && cd "$W/debs" && apt download "$@" && unpack "$W/debs"); }
# PACKAGE...: these packages and those that they depend on and the machine lacks.
fetch_all() {
    apt install -y --no-install-recommends --download-only "$@" && unpack "$W/apt/cache/archives"
}
unpack() {
    local deb
    mkdir -p "$W/root"
    for deb in "$1"/*.deb; do dpkg-deb -x "$deb" "$W/root" && rm "$deb"; done
}

# A port that is free now. Another program can take it, but nothing else is likely to.
free_port() { echo $((20000 + (RANDOM * 32768 + RANDOM) % 10000)); }
# Waits for a condition, a command, for at most 60 s.
await() {
    local _
    for _ in $(seq 600); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    die "this did not happen within a minute: $*"
}
# tcp|udp PORT: whether a socket of this network namespace is bound to it, and listens if it is one of TCP.
listens() { grep -Eq ":$(printf %04X "$2") [0-9A-F]+:0000 0[7A] " "/proc/net/$1" "/proc/net/${1}6"; }
# NAME EXPECTED SEEN
is() {
    [ "$2" = "$3" ] || die "FAIL $1: expected '$2', got '$3'"
    echo "PASS $1: $3"
}

# Puts into $W/machine what a small virtual machine for amd64 needs, except /dhcp and /init: busybox, the modules of a virtio
# network device, and /drivers, which /init reads first. Sets busybox and kernel.
machine_files() {
    local package module
    package=$(apt_cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
    fetch busybox-static "$package"
    busybox=$(find "$W/root" -path '*bin/busybox' | head -n 1)
    kernel=$(find "$W/root/boot" -name 'vmlinuz-*')
    mkdir -p "$W/machine/"{bin,mod,proc,sys,dev,tmp}
    cp "$busybox" "$W/machine/bin/busybox"
    find "$W/root" -name '*.ko*' |
        grep -E '/(virtio|virtio_ring|virtio_pci|virtio_pci_(modern|legacy)_dev|failover|net_failover|virtio_net)\.ko' |
        while read -r module; do
            case $module in
            *.xz) "$busybox" xz -dc "$module" >"$W/machine/mod/$(basename "$module" .xz)" ;;
            *) cp "$module" "$W/machine/mod/" ;;
            esac
        done
    cat >"$W/machine/drivers" <<'END'
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# The order of the modules does not matter: what is needed first is there in the next turn.
for _ in 1 2 3 4 5; do for module in /mod/*.ko; do insmod "$module" 2>/dev/null; done; done
ip link set lo up
ip link set eth0 up
END
}
# FOLDER: writes `kernel` and `initrd` there.
machine_image() {
    chmod +x "$W/machine/"{dhcp,init}
    cp "$kernel" "$1/kernel"
    (cd "$W/machine" && find . | "$busybox" cpio -o -H newc >"$1/initrd")
}
