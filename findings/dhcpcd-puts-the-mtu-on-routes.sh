#!/bin/bash
# dhcpcd puts the MTU that DHCP names on its routes, above the MTU of the interface, and Linux then sends packets that
# the link cannot carry.
#
# Option 26 leaves the interface's MTU as it is. The routes get `mtu 9000` on a link of 1500 bytes, and the kernel uses
# a route's value without checking the device: a datagram of 3000 bytes leaves as one packet, not as fragments, and the
# link drops it. For the MTU of a router advertisement dhcpcd does check: "advertised MTU is greater than link MTU".
#
# Seen with dhcpcd-base 9.4.1-24~deb12u5, dnsmasq-base 2.90-4~deb12u2, Linux 6.18:
#   the link's MTU: 1500
#   default via 198.51.100.1 dev eth0 proto dhcp src 198.51.100.2 metric 1002 mtu 9000
#   ping with 3000 bytes over dhcpcd's route: lost
#   ping with 3000 bytes over the same route without its MTU: answered
#
# For passt-rs: the guest may send frames of the advertised MTU even if its interface has a smaller one. Each link has to
# take frames up to the advertised MTU.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }

if [ "${1-}" != inside ]; then
    [ "$(id -u)" = 0 ] || cannot "root is needed"
    for tool in apt-get dpkg ip ping unshare; do command -v "$tool" >/dev/null || cannot "no $tool"; done
    folder=$(mktemp -d) || exit 77
    trap 'rm -rf "$folder"' EXIT
    script=$(realpath "$0")
    cd "$folder" || exit 77
    chmod 755 .
    apt-get download -q dhcpcd-base=9.4.1-24~deb12u5 dnsmasq-base=2.90-4~deb12u2 >log 2>&1 || cannot "no such packages"
    for package in *.deb; do dpkg -x "$package" root || cannot "dpkg -x"; done
    # The namespaces end with the script, and all processes with them.
    unshare --net --mount --pid --fork --kill-child --mount-proc "$script" inside
    exit
fi

dhcpcd=$PWD/root/sbin/dhcpcd
[ -x "$dhcpcd" ] || dhcpcd=$PWD/root/usr/sbin/dhcpcd
"$dhcpcd" --version | head -n 1
uname -sr
mount --make-rprivate /
for place in /run /var/lib; do mount -t tmpfs tmpfs $place || cannot "no tmpfs"; done
mount -o ro -t sysfs sysfs /sys || cannot "no sysfs" # no udev to wait for
ip link set lo up
ip netns add server || cannot "no namespaces"
ip link add eth0 type veth peer name eth0 netns server || cannot "no veth"
ip -n server addr add 198.51.100.1/24 dev eth0
ip -n server link set eth0 up
ip link set eth0 up
ip netns exec server "$PWD/root/usr/sbin/dnsmasq" --conf-file=/dev/null --keep-in-foreground --port=0 --user=root \
    --dhcp-range=198.51.100.2,198.51.100.2,12h --dhcp-option=option:mtu,9000 --dhcp-leasefile=/run/leases \
    --log-facility=/run/log || cat /run/log &
"$dhcpcd" --nobackground -4 --noarp --script /bin/true eth0 >/run/dhcpcd.log 2>&1 &
for _ in $(seq 150); do
    route=$(ip -4 route show default)
    [ -n "$route" ] && break
    sleep 0.2
done
[ -n "$route" ] || { cat /run/dhcpcd.log; cannot "no lease"; }

mtu=$(cat /sys/class/net/eth0/mtu)
echo "the link's MTU: $mtu"
echo "$route"
sent() { ping -c 1 -W 3 -s 3000 198.51.100.1 >/dev/null && echo answered || echo lost; }
over=$(sent)
echo "ping with 3000 bytes over dhcpcd's route: $over"
ip route replace 198.51.100.0/24 dev eth0 src 198.51.100.2 metric 1
without=$(sent)
echo "ping with 3000 bytes over the same route without its MTU: $without"
case "$mtu $route $over $without" in
"1500 "*"mtu 9000"*" lost answered") exit 0 ;;
esac
echo "the behaviour has changed"
exit 1
