//! Firmware in virtual machines that passt connects.

use super::row::Row;

/// The script runs in a PID namespace, so that all processes end with the script.
const PASST: &str = "exec unshare --pid --fork --kill-child --mount-proc sh $DIR/machine";

/// Starts the servers of the peer, passt, and the virtual machine. Waits until all expected output was seen, or the
/// virtual machine ends.
const MACHINE: &str = r#"
exec 2>&1
mkdir -p $DIR/served
head -c 300000 /dev/zero >$DIR/served/file
rm -f $DIR/socket $DIR/console
ip netns exec peer dnsmasq --conf-file=/dev/null --keep-in-foreground --port=0 --user=root \
    --enable-tftp --tftp-root=$DIR/served --log-facility=- >$DIR/tftp 2>&1 &
(cd $DIR/served && exec ip netns exec peer python3 -m http.server 8000 >$DIR/http 2>&1) &
$PROGRAMS/passt --quiet --foreground --socket $DIR/socket >$DIR/log 2>&1 &
for _ in $(seq 100); do [ -S $DIR/socket ] && break; sleep 0.1; done

machine() { # OPTION...
    qemu-system-x86_64 -nodefaults -display none -no-reboot -m 512 \
        -netdev stream,id=net,server=off,addr.type=unix,addr.path=$DIR/socket "$@"
}
missing() {
    while read -r pattern; do
        cat $DIR/console $DIR/tftp $DIR/http 2>/dev/null | grep -qaE -e "$pattern" || echo "$pattern"
    done <$DIR/shows
}
(. $DIR/start) >>$DIR/log 2>&1 &
machine=$!
for _ in $(seq 180); do
    missing=$(missing)
    [ -z "$missing" ] && exit 0
    kill -0 $machine 2>/dev/null || break
    sleep 0.5
done
tail -n 2 $DIR/console $DIR/log
echo "does not show:" $missing
exit 1
"#;

/// The row of a firmware. `start` has shell commands that run the virtual machine, with its console in `$DIR/console`.
/// `shows` has regular expressions, one in each line. Each must match in the console or in the logs of the peer's
/// servers.
fn row(
    name: &'static str,
    protocol: &'static str,
    needs: &'static [(&'static str, &'static str)],
    start: &'static str,
    shows: &'static str,
) -> Row {
    let files = [("start", start), ("shows", shows), ("machine", MACHINE)];
    Row { name, protocol, needs, files, script: PASST }
}

const QEMU: (&str, &str) = ("qemu-system-x86", "qemu-system-x86_64");
const TFTP: (&str, &str) = ("dnsmasq-base", "dnsmasq");
const HTTP: (&str, &str) = ("python3", "python3");

/// The rows of all firmware.
pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "iPXE",
            "DHCP, TFTP, HTTP",
            &[("ipxe", "/usr/lib/ipxe/ipxe.lkrn"), QEMU, TFTP, HTTP],
            IPXE,
            "ip=198.51.100.2&gateway=198.51.100.1&dns=198.51.100.53\nsent .*/file to\nGET /file HTTP\n",
        ),
        row(
            "U-Boot",
            "DHCP, TFTP",
            &[("u-boot-qemu", "/usr/lib/u-boot/qemu-x86/u-boot.rom"), QEMU, TFTP, HTTP],
            U_BOOT,
            "ipaddr=198.51.100.2\ngatewayip=198.51.100.1\ndnsip=198.51.100.53\nBytes transferred = 300000\n",
        ),
        row(
            "GRUB (EFI)",
            "DHCP, TFTP, HTTP",
            &[
                ("grub-efi-amd64-bin", "/usr/lib/grub/x86_64-efi/tftp.mod"),
                ("grub-common", "grub-mkstandalone"),
                ("ovmf", OVMF_CODE),
                QEMU,
                TFTP,
                HTTP,
            ],
            GRUB,
            "dhcp [0-9a-f:]+ 198.51.100.2\ngw 198.51.100.1\n198.51.100.53\nfiles are identical\n",
        ),
        row(
            "OVMF (UEFI shell)",
            "DHCP, TFTP",
            &[("ovmf", OVMF_CODE), QEMU, TFTP, HTTP],
            OVMF,
            "198.51.100.2\n198.51.100.1\n198.51.100.53\nsent .*/file to\n",
        ),
    ]
}

const IPXE: &str = r#"
cat >$DIR/script <<'END'
#!ipxe
dhcp
imgfetch --name tftp tftp://198.51.100.3/file
imgfetch --name http http://198.51.100.3:8000/file
imgfetch --name told http://198.51.100.3:8000/told?ip=${ip}&gateway=${gateway}&dns=${dns}
reboot
END
machine -device virtio-net-pci,netdev=net,romfile= -machine graphics=off -serial file:$DIR/console \
    -kernel /usr/lib/ipxe/ipxe.lkrn -initrd $DIR/script
"#;

/// U-Boot receives its commands on its console, when the console is ready.
const U_BOOT: &str = r#"
{
    for _ in $(seq 300); do grep -qa 'Hit any key' $DIR/console && break; sleep 0.1; done
    printf '\n'
    for _ in $(seq 300); do grep -qa '^=> ' $DIR/console && break; sleep 0.1; done
    # One line: what comes during a transfer is taken for ^C or lost.
    printf 'virtio scan; setenv autoload no; dhcp; printenv ipaddr gatewayip dnsip; '
    printf 'tftpboot 1000000 198.51.100.3:file\n'
    exec sleep 60 # at its end the console would close
} | machine -device virtio-net-pci,netdev=net,romfile= -serial stdio \
    -bios /usr/lib/u-boot/qemu-x86/u-boot.rom >$DIR/console
"#;

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// GRUB is a UEFI application that uses the network driver of the firmware.
const GRUB: &str = r#"
cat >$DIR/grub.cfg <<'END'
serial
terminal_output serial
net_bootp
net_ls_addr
net_ls_routes
net_ls_dns
cmp (tftp,198.51.100.3)/file (http,198.51.100.3:8000)/file
halt
END
mkdir -p $DIR/grub/EFI/BOOT
grub-mkstandalone -O x86_64-efi -o $DIR/grub/EFI/BOOT/BOOTX64.EFI --locales= --fonts= --themes= \
    --modules='net efinet tftp http serial terminal cmp halt' boot/grub/grub.cfg=$DIR/grub.cfg
cp /usr/share/OVMF/OVMF_VARS_4M.fd $DIR/variables
machine -device virtio-net-pci,netdev=net,romfile= -serial file:$DIR/console \
    -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
    -drive if=pflash,format=raw,file=$DIR/variables -drive if=virtio,format=raw,file=fat:rw:$DIR/grub
"#;

/// The boot order contains only the disk, so that the shell on the disk starts before PXE.
const OVMF: &str = r#"
mkdir -p $DIR/shell
cp /usr/share/OVMF/OVMF_VARS_4M.fd $DIR/variables
cat >$DIR/shell/startup.nsh <<'END'
fs0:
connect -r
ifconfig -s eth0 dhcp
stall 5000000
ifconfig -l eth0
tftp 198.51.100.3 file
reset -s
END
machine -device virtio-net-pci,netdev=net,romfile= -serial file:$DIR/console \
    -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
    -drive if=pflash,format=raw,file=$DIR/variables -drive if=none,id=disk,format=raw,file=fat:rw:$DIR/shell \
    -device virtio-blk-pci,drive=disk,bootindex=1
"#;
