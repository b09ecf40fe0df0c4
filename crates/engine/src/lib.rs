//! The decisions of user-mode networking, as state machines that never call the operating system.
//!
//! The caller passes in the frames of a guest. Their effects happen through two traits that the caller implements:
//! [`host::Host`] opens sockets, [`link::Link`] takes frames to the guest. Time is an argument ([`timer::Instant`]).
//! The caller gives randomness and addressing once, at the start ([`stack::Seeds`], [`addr::Settings`]).
//!
//! ```text
//!    frames of the guest                         readiness, accepted connections
//!            |                                                |
//!            v                                                v
//!   +-------------------------- stack: Stack, Round --------------------------+
//!   |  checksums  reassembly                             timer: deadlines     |
//!   |      |                                                                  |
//!   |      +--> local: ARP, NDP, DHCP, DHCPv6: answer at once                 |
//!   |      |                                                                  |
//!   |      +--> flow: the tables --> tcp  udp  icmp  dns <-- nat, addr        |
//!   +--------------|----------------------------------------------|-----------+
//!                  v                                              v
//!     link::Link: frames to the guest                host::Host: sockets
//!
//!   forward: port rules     splice: TCP that bypasses the link     share: limits of tables
//! ```
//!
//! # The contract of the event loop
//!
//! 1. Begin a round with the time, the host and the link: [`Stack::round`](stack::Stack::round).
//! 2. Report the events, in any order: [`frame`](stack::Round::frame), [`ready`](stack::Round::ready),
//!    [`accept`](stack::Round::accept), and changes of the link. The caller may also begin a new round for each event.
//! 3. End the round: [`finish`](stack::Round::finish) handles expired deadlines and sends what the events require. The
//!    returned [`Pressure`](pressure::Pressure) shows whether work is left, so that the caller must not wait.
//! 4. Wait for events, until [`Stack::next_deadline`](stack::Stack::next_deadline) at the latest. Then begin the next
//!    round, even if there was no event.
//!
//! The engine never blocks and never calls back later: it uses sockets and the link only within these calls.
//!
//! A stack has no locks. Each call that changes a stack borrows the stack exclusively (`&mut`), so two threads can't
//! call it at the same time. Stacks share nothing: each stack can be made and used on its own thread. The caller must
//! guarantee that time does not go back, that each round is finished before the wait, and that host and link fulfil
//! the contracts of their traits.
//!
//! # Example
//!
//! The example is a stack over a link in memory. The guest asks for the hardware address of its gateway, and gets an
//! answer.
//!
//! ```
//! use engine::{context::World, host::NoHost, link::{Full, Layout, Link, Slot}, memory::Plain};
//! use engine::{pressure::Pressure, stack::Stack, timer::Instant};
//! use wire::{frame, offload::Offload};
//!
//! /// Keeps what is sent to the guest.
//! struct Memory { buffer: Vec<u8>, sent: Vec<Vec<u8>> }
//!
//! impl Link for Memory {
//!     type Memory = Plain;
//!     fn prepare(&mut self, layout: Layout) -> bool {
//!         layout.len() <= self.buffer.len()
//!     }
//!     fn slot(&mut self, layout: Layout) -> Slot<'_, Plain> {
//!         Slot::in_buffer(&mut self.buffer, layout)
//!     }
//!     fn send(&mut self, _: Layout, len: usize, _: &Offload) -> Result<(), Full> {
//!         self.sent.push(self.buffer[..len].to_vec());
//!         Ok(())
//!     }
//! }
//!
//! enum Example {}
//! impl World for Example {
//!     type Memory = Plain;
//!     type Host = NoHost<Plain>;
//!     type Link = Memory;
//! }
//!
//! # use engine::{addr::{Guest, Services, Settings, V4}, neighbours::Neighbours, stack::{Limits, Seeds}};
//! # use engine::{dns, reassembly, share::{Bound, Share}, udp};
//! # use std::time::Duration;
//! # let v4 = V4 {
//! #     assigned: [192, 0, 2, 2].into(), prefix_len: 24, our_address: Some([192, 0, 2, 1].into()),
//! #     map_host_loopback: None, map_guest_address: None, dns_forward: None, dns_servers: vec![], pinned: false, dns: vec![],
//! # };
//! # let services = Services {
//! #     tcp: true, udp: true, icmp: true, multicast: false, dhcp: true, dhcpv6: true, ndp: true, ra: true,
//! #     advertise_dns: false, advertise_search: false, search: vec![], hostname: None, fqdn: None, start_since_2000: 0,
//! # };
//! # let our_mac = wire::ethernet::Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
//! # let settings =
//! #     Settings { our_mac, mtu: 1500, v4: Some(v4), v6: None, neighbours: Neighbours::default(), virtual_hosts: vec![], services };
//! # let (share, idle) = (Share { most: 8, bound: Bound::Fixed }, Duration::from_secs(30));
//! # let limits = Limits {
//! #     connections: 8, queue_memory: 1 << 20, pings: share,
//! #     udp: udp::Limits {
//! #         flows: share, inbound: share, endpoints: share, bypass: share, checks: udp::CheckLimits::DEFAULT,
//! #         idle, idle_stream: idle,
//! #     },
//! #     dns: dns::Limits { files: share, bytes: 4096, idle, idle_stream: idle },
//! #     fragments: reassembly::Limits::default(),
//! # };
//! # let seeds = Seeds { hash_key: [1; 16], isn_secret: [2; 16], query_secret: [4; 16], advertisement: 3 };
//! # let guest = Guest::new(&settings, None);
//! let now = Instant::from_micros(0);
//! let mut stack = Stack::<Example>::new(settings, guest, limits, seeds, now);
//! let (mut host, mut link) = (NoHost::new(), Memory { buffer: vec![0; frame::MAX_LEN], sent: vec![] });
//!
//! // To all, from 02:00:00:00:00:02, ARP: who has 192.0.2.1? Tell 192.0.2.2.
//! let question = [
//!     &[0xff; 6][..], &[2, 0, 0, 0, 0, 2], &[8, 6], &[0, 1, 8, 0, 6, 4, 0, 1],
//!     &[2, 0, 0, 0, 0, 2], &[192, 0, 2, 2], &[0; 6], &[192, 0, 2, 1],
//! ].concat();
//!
//! let mut round = stack.round(now, &mut host, &mut link);
//! round.frame(frame::head(&question), &question, &Offload::default());
//! assert_eq!(round.finish(), Pressure::None);
//!
//! let answer = link.sent.iter().find(|frame| frame[12..14] == [8, 6]).expect("an answer");
//! assert_eq!(answer[20..22], [0, 2], "it is a reply");
//! assert_eq!(answer[28..32], [192, 0, 2, 1], "of the gateway");
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

// Unit tests include the test kit as a module. If the test kit were a crate, it would depend on another build of the
// engine.
#[cfg(test)]
extern crate self as engine;
#[cfg(test)]
extern crate std;

pub mod addr;
mod allocation;
mod checksums;
pub mod context;
pub mod dns;
pub mod drops;
pub mod events;
pub mod first_bytes;
pub mod flow;
pub mod forward;
mod fragmentation;
pub mod guard;
pub mod host;
pub mod icmp;
mod idle;
pub mod link;
pub mod listing;
pub mod local;
mod membership;
pub mod memory;
pub mod names;
pub mod nat;
pub mod neighbours;
pub mod policy;
pub mod ports;
pub mod pressure;
pub mod quota;
mod ranges;
pub mod rate_limit;
pub mod reassembly;
pub mod resolvers;
pub mod share;
pub mod splice;
pub mod stack;
pub mod tcp;
pub mod timer;
pub mod udp;

#[cfg(test)]
#[path = "../../testkit/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "it has other users as well")]
mod testkit;
