//! The command line: the QEMU to run, and its arguments.

use std::env::consts::ARCH;
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;

use anyhow::Context;

/// The number of the network socket's descriptor, if the command line has no number.
const DEFAULT_FD: RawFd = 5;

/// Device drivers of network cards, except `virtio-net-*`.
const CARDS: [&str; 16] = [
    "e1000",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82550",
    "i82551",
    "i82557a",
    "i82557b",
    "i82559er",
    "igb",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "usb-net",
    "vmxnet3",
];

/// The program to run, and its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Names of the program. The first program that exists is used.
    pub(super) programs: Vec<OsString>,
    /// The arguments, without the program's name.
    pub(super) arguments: Vec<OsString>,
    pub(super) network: Network,
}

/// Whether QEMU needs a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// QEMU only prints information, and runs no guest.
    None,
    /// A socket, with this descriptor number.
    At(RawFd),
}

/// Parses a command line, without the name of this program.
pub(super) fn read(mut arguments: Vec<OsString>) -> anyhow::Result<Start> {
    let number = arguments.first().and_then(|first| first.to_str()?.parse::<RawFd>().ok());
    if let Some(number) = number.filter(|number| *number >= 0) {
        let program = arguments.get(1).cloned().context("which QEMU to run is missing")?;
        let arguments = arguments.split_off(2);
        return Ok(Start { programs: vec![program], arguments, network: Network::At(number) });
    }
    let programs = vec![
        format!("qemu-system-{}", architecture()).into(),
        "qemu-kvm".into(),
        "/usr/libexec/qemu-kvm".into(),
    ];
    if runs_nothing(&arguments) {
        return Ok(Start { programs, arguments, network: Network::None });
    }
    Ok(Start { programs, arguments: connected(arguments), network: Network::At(DEFAULT_FD) })
}

/// QEMU's name for the architecture of this machine.
fn architecture() -> &'static str {
    match ARCH {
        "x86" => "i386",
        "powerpc64" => "ppc64",
        other => other,
    }
}

/// Whether QEMU only prints information about itself, as managers of virtual machines request.
fn runs_nothing(arguments: &[OsString]) -> bool {
    let pairs = arguments.iter().zip(arguments.iter().skip(1).map(Some).chain([None]));
    pairs.into_iter().any(|(option, value)| {
        let value = value.and_then(|value| value.to_str()).unwrap_or_default();
        match name(option) {
            Some("help" | "h" | "version") => true,
            Some("machine" | "M" | "device" | "cpu") if ["help", "?"].contains(&value) => true,
            Some("machine" | "M") => value.split(',').next() == Some("none"),
            _ => false,
        }
    })
}

/// The name of an option, without its one or two dashes.
fn name(argument: &OsStr) -> Option<&str> {
    let name = argument.to_str()?.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name))
}

/// Replaces all network cards and back-ends in the arguments by one card that is connected to the socket. The new card
/// comes last, so that QEMU gives it an address that no other device has. It has the hardware address of the first
/// replaced card.
fn connected(arguments: Vec<OsString>) -> Vec<OsString> {
    let (mut kept, mut mac, mut bus) = (Vec::new(), None, "pci");
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let option = name(&argument).map(str::to_owned);
        match option.as_deref() {
            Some("net" | "netdev" | "nic") => drop(rest.next()),
            Some("device") => match rest.next() {
                Some(device) if is_card(&device) => {
                    mac = mac.or_else(|| property(&device, "mac"));
                }
                device => kept.extend([argument].into_iter().chain(device)),
            },
            Some("machine" | "M") => {
                let machine = rest.next();
                let name = machine.as_deref().and_then(OsStr::to_str).unwrap_or_default();
                if name.contains("s390") {
                    bus = "ccw";
                } else if name.contains("microvm") {
                    bus = "device";
                }
                kept.extend([argument].into_iter().chain(machine));
            }
            _ => kept.push(argument),
        }
    }
    let mac = mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
    kept.extend([
        "-netdev".into(),
        format!("socket,fd={DEFAULT_FD},id=hostnet0").into(),
        "-device".into(),
        format!("virtio-net-{bus},netdev=hostnet0{mac}").into(),
    ]);
    kept
}

/// Whether the value of `-device` is a network card.
fn is_card(device: &OsStr) -> bool {
    let Some(text) = device.to_str() else { return false };
    let driver =
        property(device, "driver").unwrap_or_else(|| text.split(',').next().unwrap_or("").to_owned());
    driver.starts_with("virtio-net") || CARDS.contains(&driver.as_str())
}

/// A property of a device, which is in the form `driver,name=value,...` or a JSON object without nested values.
fn property(device: &OsStr, name: &str) -> Option<String> {
    let text = device.to_str()?.trim();
    if let Some(members) = text.strip_prefix('{') {
        let (_, rest) = members.split_once(&format!("\"{name}\""))?;
        let value = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        return value.split_once('"').map(|(value, _)| value.to_owned());
    }
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    fn patched(text: &str) -> String {
        let start = read(words(text)).unwrap();
        assert_eq!(start.network, Network::At(5));
        start.arguments.join(OsStr::new(" ")).into_string().unwrap()
    }

    const OURS: &str = "-netdev socket,fd=5,id=hostnet0 -device virtio-net-pci,netdev=hostnet0";

    #[test]
    fn arguments_after_a_number_are_kept() {
        let start = read(words("7 my-qemu -net nic -net socket,fd=7")).unwrap();
        let arguments = words("-net nic -net socket,fd=7");
        assert_eq!(start, Start { programs: words("my-qemu"), arguments, network: Network::At(7) });
        assert!(read(words("7")).is_err());
    }

    #[test]
    fn networks_are_replaced_and_other_arguments_are_kept() {
        assert_eq!(patched("-m 1G"), format!("-m 1G {OURS}"));
        assert_eq!(
            patched("-net nic -m 1G -net user -netdev user,id=a --netdev tap,id=b -nic user -smp 2"),
            format!("-m 1G -smp 2 {OURS}")
        );
        assert_eq!(
            patched("-device e1000,netdev=a -device virtio-blk,drive=a -device virtio-net-pci,netdev=b"),
            format!("-device virtio-blk,drive=a {OURS}")
        );
    }

    #[test]
    fn the_hardware_address_is_kept() {
        let mac = "52:54:00:12:34:56";
        for device in [
            format!("rtl8139,netdev=a,mac={mac},addr=0x3"),
            format!("{{\"driver\":\"virtio-net-pci\",\"netdev\":\"a\",\"mac\":\"{mac}\",\"bus\":\"pci.1\"}}"),
        ] {
            assert_eq!(patched(&format!("-device {device} -S")), format!("-S {OURS},mac={mac}"));
        }
        let disk = "{\"driver\":\"virtio-blk-pci\",\"drive\":\"virtio-net\"}";
        assert_eq!(patched(&format!("-device {disk}")), format!("-device {disk} {OURS}"));
    }

    #[test]
    fn the_card_fits_the_machine() {
        assert!(patched("-machine s390-ccw-virtio,accel=kvm").ends_with("virtio-net-ccw,netdev=hostnet0"));
        assert!(patched("-M microvm").ends_with("virtio-net-device,netdev=hostnet0"));
    }

    #[test]
    fn requests_for_information_need_no_network() {
        for line in
            ["-version", "--help", "-S -machine none,accel=kvm:tcg -qmp unix:x", "-device help", "-cpu ?"]
        {
            let start = read(words(line)).unwrap();
            assert_eq!((start.network, start.arguments), (Network::None, words(line)));
        }
    }

    #[test]
    fn an_incomplete_option_is_passed_to_qemu() {
        assert_eq!(patched("-m 1G -device"), format!("-m 1G -device {OURS}"));
        assert_eq!(patched("-netdev"), OURS);
    }
}
