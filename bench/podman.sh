#!/bin/bash
# How long `podman run` of a command that does nothing takes with each pasta. For root, on any system.
#
#     bench/podman.sh ROUNDS ROOT PASTA...
#
# ROOT is the root directory of a system with podman 5 and a user `user`, such as `packaging/clients --root ROOT` makes. Nothing
# of it is changed but /pasta and /home/user. The programs take turns; each figure is the median of the rounds in
# milliseconds, with the lowest and the highest. `none` is a container without a network.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
rounds=$1 root=$(realpath "$2")
shift 2
trap 'rm -rf "$root/pasta"' EXIT
rm -rf "$root/pasta"
number=0
for pasta; do
    number=$((number + 1))
    mkdir -p "$root/pasta/$number"
    cp "$pasta" "$root/pasta/$number/pasta"
    echo "$pasta" >"$root/pasta/$number/name"
    # The C program executes another file, if the processor has AVX2.
    [ ! -e "$pasta.avx2" ] || cp "$pasta.avx2" "$root/pasta/$number/pasta.avx2"
done

# shellcheck disable=SC2016 # for the inner shells
"$(dirname "$0")/../packaging/enter-root" "$root" bash -euc '
    chmod 666 /dev/net/tun
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
    ip link set lo up
    ip link add eth0 type veth peer name eth1
    ip addr add 192.0.2.10/24 dev eth0
    ip link set eth0 up
    ip link set eth1 up
    ip route add default via 192.0.2.1
    mkdir -p /run/user/12345 /tmp/image/bin ~user/.config/containers
    cp "$(command -v busybox)" /tmp/image/bin/
    ln -s busybox /tmp/image/bin/true
    printf "[storage]\ndriver = \"vfs\"\n" >~user/.config/containers/storage.conf
    for number in none $(ls /pasta); do
        printf "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nhelper_binaries_dir = [\"/pasta/%s\", \"/usr/libexec/podman\", \"/usr/lib/podman\"]\n[containers]\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n" "$number" \
            >"/tmp/$number.conf"
    done
    chown -R user ~user /run/user/12345
    exec setpriv --reuid 12345 --regid 12345 --init-groups env -C ~user HOME=/home/user USER=user \
        XDG_RUNTIME_DIR=/run/user/12345 PODMAN_IGNORE_CGROUPSV1_WARNING=1 bash -euo pipefail -c "$1" bash "$2"
' bash '
    tar -C /tmp/image -c . | podman import -q - localhost/try >/dev/null
    start() {
        network=pasta
        [ "$1" != none ] || network=none
        CONTAINERS_CONF=/tmp/$1.conf podman run --rm --network $network localhost/try true
    }
    programs=$(cd /tmp; ls *.conf | sed "s/.conf//" | sort -r)
    for program in $programs; do start "$program"; done
    for ((round = 0; round < $1; round++)); do
        for program in $programs; do
            begin=$(date +%s%N)
            start "$program"
            echo $((($(date +%s%N) - begin) / 1000)) >>"/tmp/$program.times"
        done
    done
    for program in $programs; do
        name=$(cat "/pasta/$program/name" 2>/dev/null || echo "$program")
        sort -n "/tmp/$program.times" | awk -v name="$name" "{ t[NR] = \$1 / 1000 }
            END { printf \"%s: %.1f [%.1f-%.1f] ms\n\", name, t[int((NR + 1) / 2)], t[1], t[NR] }"
    done
' "$rounds"
