#!/bin/bash
# QEMU's e1000 passes no frame to the guest for one second after the driver has enabled the receiver: firmware gets no
# DHCP offer in that time, however fast the server.
#
# U-Boot enables the receiver, sends its first DHCPDISCOVER at once and repeats it after growing intervals. Each gets an
# offer, but all offers wait in QEMU: U-Boot needs several broadcasts for each command that uses the network. With
# virtio-net the first one is enough. A capture at the server looks as if the client ignores offers. (U-Boot's times
# run fast here. In the capture there is one second between the first DHCPDISCOVER and the DHCPREQUEST.)
#
# Seen with QEMU 10.0.2, U-Boot 2023.01+dfsg-2+deb12u3, and QEMU's own DHCP server (-netdev user):
#   e1000: 4 broadcasts, then: DHCP client bound to address 10.0.2.15 (2588 ms)
#   virtio-net-pci: 1 broadcasts, then: DHCP client bound to address 10.0.2.15 (122 ms)
#
# For passt-rs: the guest does not get replies that arrive within microseconds. This is no reason to delay or repeat them.
# Measure the start of firmware with virtio-net.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
folder=$(mktemp -d) || exit 77
machine=
# shellcheck disable=SC2317
cleanup() {
    [ -z "$machine" ] || kill "$machine" 2>/dev/null
    rm -rf "$folder"
}
trap cleanup EXIT
cd "$folder" || exit 77
for tool in apt-get dpkg qemu-system-x86_64; do command -v "$tool" >/dev/null || cannot "no $tool"; done
apt-get download -q u-boot-qemu=2023.01+dfsg-2+deb12u3 >log 2>&1 || cannot "no u-boot-qemu 2023.01+dfsg-2+deb12u3"
dpkg -x u-boot-qemu_*.deb root || cannot "dpkg -x"
rom=root/usr/lib/u-boot/qemu-x86/u-boot.rom
qemu-system-x86_64 --version | head -n 1
qemu-system-x86_64 -netdev help | grep -qx user || cannot "QEMU without -netdev user"

# Leaves in `broadcasts` how many there were until U-Boot had an address.
boot() { # NIC
    mkfifo keys-$1
    qemu-system-x86_64 -nodefaults -display none -no-reboot -m 512 -bios $rom -netdev user,id=net \
        -device "$1,netdev=net,romfile=" -serial stdio <keys-$1 >console-$1 2>/dev/null &
    machine=$!
    exec 3>keys-$1
    say() { # KEYS after TEXT
        for _ in $(seq 300); do
            grep -qa "$2" console-$1 && break
            sleep 0.2
        done
        printf '%s\n' "$3" >&3
    }
    say "$1" 'Hit any key' ''
    say "$1" '^=> ' 'virtio scan; setenv autoload no; dhcp'
    for _ in $(seq 150); do
        bound=$(grep -ao 'DHCP client bound.*)' console-$1) && break
        sleep 0.2
    done
    exec 3>&-
    kill $machine
    wait $machine 2>/dev/null
    machine=
    broadcasts=$(grep -ac 'BOOTP broadcast' console-$1)
    [ -n "$bound" ] || cannot "no address by $1"
    echo "$1: $broadcasts broadcasts, then: $bound"
}
grep -ao 'U-Boot 20[0-9.]*[^ ]*' $rom | head -n 1
boot e1000
late=$broadcasts
boot virtio-net-pci
[ "$late" -gt "$broadcasts" ] && exit 0
echo "the behaviour has changed"
exit 1
