//! Command lines of real clients (behaviour §2.3, §13.1). They must keep working unchanged.

use crate::golden::outcomes;

/// Rootless podman and Buildah.
#[test]
fn podman_command_lines_are_accepted() {
    insta::assert_snapshot!(outcomes(
        "/usr/bin/pasta --config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2
         /usr/bin/pasta --config-net -t 80-80:80-80 -t 127.0.0.1/8080-8081:80-81 -u 53-53:53-53 --dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2
         /usr/bin/pasta --config-net -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 -m 1500 --no-ndp --no-dhcpv6 --no-dhcp -t none -u none -T none -U none --quiet --netns /proc/42/ns/net"
    ));
}

#[test]
fn libvirt_command_lines_are_accepted() {
    insta::assert_snapshot!(outcomes(
        "passt --one-off --socket /run/user/1000/libvirt/qemu/run/passt/1-net0.socket --mac-addr 52:54:00:12:34:56 --pid /run/user/1000/libvirt/qemu/run/passt/1-net0-passt.pid --log-file /tmp/passt.log --interface eth0 --address 172.17.2.4 --netmask 255.255.0.0 --address 2001:db8:ac10:fd01::feed --tcp-ports 2001:db8:ac10:fd01::1:10/22,~23,1000-1010:5000-5010 --udp-ports 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015
         passt --one-off --vhost-user --socket /x.socket --mac-addr 52:54:00:12:34:56 --pid /x.pid --tcp-ports all --mtu 1400"
    ));
}

/// Both network back ends of QEMU. QEMU joins its lists: ports with commas, domains with blanks.
#[test]
fn qemu_command_lines_are_accepted() {
    insta::assert_snapshot!(outcomes(
        "passt --quiet --address 192.0.2.5 --search 'a.example b.example' --tcp-ports 8080:80,8443:443 --udp-ports 5353 --pid /tmp/passt-pid-ABC --fd 3
         passt --vhost-user --quiet --mtu 1500 --pid /tmp/passt-pid-ABC --fd 3"
    ));
}

#[test]
fn rootlesskit_command_lines_are_accepted() {
    insta::assert_snapshot!(outcomes(
        "pasta --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=none 4242
         pasta --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=none --udp-ports=none --tcp-ns=none --udp-ns=none 4242"
    ));
}

#[test]
fn slirp4netns_sh_command_lines_are_accepted() {
    insta::assert_snapshot!(outcomes(
        "pasta -q --ipv4-only -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 -m 1500 --no-ndp --no-dhcpv6 --no-dhcp -P /tmp/pid -I tap0 --netns /proc/4242/ns/net
         pasta -q --ipv4-only -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 -m 1500 --no-ndp --no-dhcpv6 --no-dhcp --config-net --no-map-gw -t 127.0.0.1/8080:80 -P /tmp/pid -I tap0 --netns /run/netns/x"
    ));
}

#[test]
fn muvm_command_lines_are_accepted() {
    insta::assert_snapshot!(outcomes("passt -q -f -t 3334:3334 --fd 17"));
}
