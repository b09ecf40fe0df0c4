use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

/// The budgets of a pasta process with this limit of open files, this number of listening sockets and plenty of memory.
pub(super) fn budgets(files: u64, listeners: usize) -> Budgets {
    let needs = Needs { listeners, namespace: true, ..Needs::default() };
    Budgets::new(&Resources { files, memory: 64 * GIB }, &needs)
}

/// The numbers of files, in this order: UDP ports, local UDP, DNS questions, pings, reserves of outbound and inbound
/// TCP, local TCP, listeners, pipes, sockets opened ahead, pool.
fn files(budgets: &Budgets) -> [usize; 11] {
    let Budgets { udp_ports, udp_clients, questions, pings, .. } = budgets;
    [
        udp_ports.most,
        udp_clients.most,
        questions.most,
        pings.most,
        budgets.tcp_out,
        budgets.tcp_in,
        budgets.local_tcp,
        budgets.listeners,
        budgets.pipes,
        budgets.ahead,
        budgets.pool,
    ]
}

/// The table of docs/design/budgets.md, and limits at both ends.
#[test]
fn shares_of_files() {
    for (limit, listeners, expected) in [
        (64, 0, [6, 2, 1, 1, 1, 1, 2, 1, 0, 0, 23]),
        (256, 4, [34, 13, 6, 6, 10, 10, 6, 10, 3, 3, 117]),
        (1024, 0, [152, 61, 30, 30, 45, 45, 30, 30, 15, 15, 493]),
        (1024, 592, [60, 24, 12, 12, 18, 18, 12, 604, 6, 6, 192]),
        (4096, 0, [632, 253, 126, 126, 189, 189, 126, 126, 63, 63, 2029]),
        (20_000, 0, [3117, 1247, 623, 623, 935, 935, 623, 623, 311, 96, 10_196]),
        (524_288, 0, [8192, 4096, 1024, 1024, 24_573, 24_573, 16_382, 4096, 1024, 96, 422_778]),
        (1_048_576, 0, [8192, 4096, 1024, 1024, 49_149, 49_149, 32_766, 4096, 1024, 96, 865_146]),
        (u64::MAX, 0, [8192, 4096, 1024, 1024, 98_301, 98_301, 65_534, 4096, 1024, 96, 1_749_882]),
    ] {
        assert_eq!(files(&budgets(limit, listeners)), expected, "{limit} files, {listeners} listeners");
    }
}

/// Without a namespace, no file is reserved for local connections. The descriptors of a front-end and of API clients are reserved
/// first.
#[test]
fn shares_of_a_machine() {
    let resources = Resources { files: 1024, memory: 64 * GIB };
    let passt = Budgets::new(&resources, &Needs::default());
    assert_eq!(files(&passt), [152, 1, 30, 30, 45, 45, 0, 30, 0, 0, 643]);
    let vhost_user = Budgets::new(&resources, &Needs { vhost_user: true, ..Needs::default() });
    assert_eq!(files(&passt).iter().sum::<usize>() - files(&vhost_user).iter().sum::<usize>(), VHOST_USER);
    let api = Budgets::new(&resources, &Needs { api: 68, ..Needs::default() });
    assert_eq!(files(&passt).iter().sum::<usize>() - files(&api).iter().sum::<usize>(), 68);
}

/// With little memory, there are few files, flows and queues, and log messages name memory as the reason.
#[test]
fn shares_of_memory() {
    let share = |most, bound| Share { most, bound };
    for (memory, udp_ports, flows, inbound, queue_memory) in [
        (
            64 * GIB,
            share(8192, Bound::Fixed),
            share(32_768, Bound::Fixed),
            share(65_536, Bound::Fixed),
            256 << 20,
        ),
        (
            GIB,
            share(5112, Bound::Memory),
            share(10_922, Bound::Memory),
            share(21_846, Bound::Memory),
            64 << 20,
        ),
        (64 << 20, share(312, Bound::Memory), share(682, Bound::Memory), share(1366, Bound::Memory), 4 << 20),
        (0, share(1, Bound::Memory), share(64, Bound::Memory), share(64, Bound::Memory), 0),
    ] {
        let budgets = Budgets::new(
            &Resources { files: 1 << 20, memory },
            &Needs { namespace: true, ..Needs::default() },
        );
        assert_eq!(
            (budgets.udp_ports, budgets.flows, budgets.inbound, budgets.queue_memory),
            (udp_ports, flows, inbound, queue_memory),
            "{memory}"
        );
    }
    assert_eq!(budgets(4096, 0).udp_ports.bound, Bound::Files);
}

/// Best-effort rules such as `all` leave three eighths of the files.
#[test]
fn listening_sockets_at_the_start() {
    for (files, most) in [(64, 16), (1024, 592), (20_000, 12_452), (1 << 20, 655_312)] {
        assert_eq!(listeners_at_start(&Resources { files, memory: 64 * GIB }), most, "{files}");
    }
}

proptest! {
    /// The sum of all shares never exceeds the limit, and each share has at least one file.
    #[test]
    fn the_sum_is_within_the_limit(
        files in 64_u64..2_000_000,
        memory in 0_u64..1 << 36,
        listeners in 0.0..1.0,
        namespace: bool,
        vhost_user: bool,
    ) {
        let resources = Resources { files, memory };
        let listeners = (listeners * listeners_at_start(&resources) as f64) as usize;
        let needs = Needs { listeners, namespace, vhost_user, ..Needs::default() };
        let budgets = Budgets::new(&resources, &needs);
        let (basis, _) = basis(&resources);
        let all = budgets.reserved() + budgets.pool;
        if basis >= 64 {
            let vhost_user = if vhost_user { VHOST_USER.min(basis / 4) } else { 0 };
            prop_assert!(process(basis) + vhost_user + all <= basis, "{all} of {basis}: {budgets:?}");
        }
        let Budgets { udp_ports, udp_clients, pings, tcp_out, tcp_in, .. } = budgets;
        for share in [udp_ports.most, udp_clients.most, pings.most, tcp_out, tcp_in] {
            prop_assert!(share > 0);
        }
        prop_assert!(!namespace || budgets.local_tcp >= 2);
        prop_assert!(budgets.listeners > needs.listeners);
    }
}
