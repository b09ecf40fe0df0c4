//! Clients in a network namespace that pasta connects.

use super::row::Row;

const V4: &str = "address4 route4 dns4";
/// The checks for IPv6. The route comes from router advertisements, which the kernel or the client processes.
const V6: &str = "address6 route6 dns6";
const BOTH: &str = "address4 route4 dns4 address6 route6 dns6";

/// Creates a network namespace with `pasta`, and runs the guest in mount and PID namespaces, so that all processes of
/// the client end with the guest.
const PASTA: &str = r#"
ip netns add guest
$PROGRAMS/pasta --quiet --foreground --dhcp-dns --dhcp-search -t none -u none -T none -U none \
    --netns /run/netns/guest >$DIR/log &
pasta=$!
for _ in $(seq 100); do ip -n guest link show eth0 >/dev/null 2>&1 && break; sleep 0.1; done
nsenter --net=/run/netns/guest unshare --mount --pid --fork --kill-child --mount-proc \
    sh $DIR/guest $(cat $DIR/checks)
result=$?
kill $pasta; wait $pasta
ip netns del guest
exit $result
"#;

/// The script of the guest: copies the directories to which clients write, starts the client, and repeats the checks
/// until all pass.
const GUEST: &str = r#"
exec 2>&1
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt 2>/dev/null
umount /etc/resolv.conf
mount --bind /mnt/etc /etc
rm -f /etc/resolv.conf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -o ro -t sysfs sysfs /sys # a container, to those who would wait for udev
mkdir -p /run/dbus /var/lib/dhcp
ip link set lo up
dev=eth0
resolvers=/etc/resolv.conf
address=$HOST4

address4() { ip -4 addr show dev $dev | grep -q "inet $address/"; }
address6() { ip -6 addr show dev $dev | grep -q "inet6 $HOST6/"; }
route4() { ip -4 route show default | grep -q "via $PEER4 dev $dev"; }
route6() { ip -6 route show default | grep -q "via fe80::.* dev $dev"; }
dns4() { grep -qw $DNS4 $resolvers; }
dns6() { grep -qw $DNS6 $resolvers; }

. $DIR/start >$DIR/log
for _ in $(seq 150); do
    missing=
    for check in "$@"; do $check 2>/dev/null || missing="$missing $check"; done
    [ -z "$missing" ] && exit 0
    sleep 0.2
done
tail -n 2 $DIR/log
echo "without:$missing"
exit 1
"#;

/// The row of a client that configures `eth0` of the guest. `checks` has names of functions in [`GUEST`]. `start` has
/// shell commands that start the client. These commands need not return.
fn row(
    name: &'static str,
    protocol: &'static str,
    needs: &'static [(&'static str, &'static str)],
    checks: &'static str,
    start: &'static str,
) -> Row {
    let files = [("start", start), ("checks", checks), ("guest", GUEST)];
    Row { name, protocol, needs, files, script: PASTA }
}

/// The rows of all clients.
pub(super) fn rows() -> Vec<Row> {
    vec![
        row("dhclient", "DHCP", &[("isc-dhcp-client", "dhclient")], V4, "dhclient -4 -1 -v eth0"),
        row("dhclient", "DHCPv6", &[("isc-dhcp-client", "dhclient")], V6, DHCLIENT_6),
        row("dhcpcd", "DHCP, DHCPv6, RA", &[("dhcpcd-base", "dhcpcd")], BOTH, "dhcpcd -B eth0 &"),
        row("dhcpcd", "DHCPINFORM", &[("dhcpcd-base", "dhcpcd")], V4, DHCPCD_INFORM),
        row("udhcpc", "DHCP", &[("udhcpc", UDHCPC_SCRIPT), ("busybox", "busybox")], V4, UDHCPC),
        row("systemd-networkd", "DHCP, DHCPv6, RA", &[("systemd", NETWORKD)], BOTH, NETWORKD_START),
        row(
            "NetworkManager",
            "DHCP, DHCPv6, RA",
            &[("network-manager", "NetworkManager"), ("dbus-daemon", "dbus-daemon")],
            BOTH,
            NETWORK_MANAGER,
        ),
        row(
            "ConnMan",
            "DHCP, DHCPv6, RA",
            &[("connman", "connmand"), ("dbus-daemon", "dbus-daemon")],
            BOTH,
            CONNMAN,
        ),
        row("Dibbler", "DHCPv6", &[("dibbler-client", "dibbler-client")], V6, DIBBLER),
        row("dhcp6c", "DHCPv6", &[("wide-dhcpv6-client", "dhcp6c")], V6, DHCP6C),
    ]
}

/// A client that supports only DHCPv6 needs a link-local address that is no longer tentative.
const DHCLIENT_6: &str = r"
ip link set eth0 up
for _ in $(seq 50); do ip -6 addr show dev eth0 scope link -tentative | grep -q fe80 && break; sleep 0.2; done
dhclient -6 -1 -v eth0
";

const DHCPCD_INFORM: &str = r"
address=198.51.100.77
ip link set eth0 up
ip addr add $address/24 dev eth0
dhcpcd -B -4 --inform=$address/24 eth0 &
";

const UDHCPC_SCRIPT: &str = "/etc/udhcpc/default.script";
const UDHCPC: &str = "busybox udhcpc -f -q -n -i eth0 -s /etc/udhcpc/default.script";

const NETWORKD: &str = "/lib/systemd/systemd-networkd";
const NETWORKD_START: &str = r"
install -d -o systemd-network -g systemd-network /run/systemd/netif
rm -rf /etc/systemd/network
mkdir /etc/systemd/network
printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' >/etc/systemd/network/eth0.network
resolvers=/run/systemd/netif/links/$(cat /sys/class/net/eth0/ifindex)
/lib/systemd/systemd-networkd &
";

/// NetworkManager does not configure a tap device that it has not created, so it creates an interface on top of the tap
/// device.
const NETWORK_MANAGER: &str = r"
dev=lan0
mkdir -p /var/lib/NetworkManager /etc/NetworkManager/system-connections
printf '[main]\nplugins=keyfile\nrc-manager=file\ndns=default\n' >/etc/NetworkManager/NetworkManager.conf
cat >/etc/NetworkManager/system-connections/guest.nmconnection <<END
[connection]
id=guest
type=macvlan
interface-name=$dev
[macvlan]
mode=4
parent=eth0
[ipv4]
method=auto
[ipv6]
method=auto
END
chmod 600 /etc/NetworkManager/system-connections/guest.nmconnection
ip link set eth0 up
dbus-daemon --system --fork
NetworkManager -n &
";

const CONNMAN: &str = r"
dbus-daemon --system --fork
connmand -n --nodnsproxy -i eth0 &
";

const DIBBLER: &str = r"
mkdir -p /etc/dibbler /var/lib/dibbler
printf 'iface eth0 {\nia\noption dns-server\noption domain\n}\n' >/etc/dibbler/client.conf
ip link set eth0 up
for _ in $(seq 50); do ip -6 addr show dev eth0 scope link -tentative | grep -q fe80 && break; sleep 0.2; done
dibbler-client run &
";

/// The client also requests a prefix. The prefix is refused.
const DHCP6C: &str = r#"
cat >$DIR/dhcp6c.conf <<END
interface eth0 { send ia-na 1; send ia-pd 2; request domain-name-servers; script "$DIR/dhcp6c.script"; };
id-assoc na 1 { };
id-assoc pd 2 { };
END
printf '#!/bin/sh\necho "nameserver $new_domain_name_servers" >/etc/resolv.conf\n' >$DIR/dhcp6c.script
chmod +x $DIR/dhcp6c.script
mkdir -p /var/lib/dhcpv6
ip link set eth0 up
for _ in $(seq 50); do ip -6 addr show dev eth0 scope link -tentative | grep -q fe80 && break; sleep 0.2; done
dhcp6c -f -c $DIR/dhcp6c.conf eth0 &
"#;
