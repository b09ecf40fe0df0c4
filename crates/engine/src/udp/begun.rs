//! The IDs of the QUIC connections that the guest began recently through flows that a rule by name allows.
//!
//! A server identifies a connection by its ID and not by the client's port, and it may drop any datagram. So a client
//! could send one part of a ClientHello through one flow, and the other part through another flow or through the same
//! flow after it has ended and begun again. The check of each flow would find an allowed name, but the server would
//! read another name. So the datagrams of a connection are forwarded by a single flow.

use core::{hash::BuildHasher, mem, time::Duration};

use hashbrown::HashSet;

use crate::{flow::HashKey, timer::Instant};

/// Minimum time for which an ID is remembered. No known server waits longer than 60 s for the rest of a ClientHello.
const MEMORY: Duration = Duration::from_secs(120);

/// A set of hashes of IDs.
#[derive(Debug)]
pub(super) struct Begun {
    recent: HashSet<u64, HashKey>,
    /// The hashes of the previous period.
    older: HashSet<u64, HashKey>,
    /// The begin of the current period.
    since: Instant,
    /// Maximum number of new IDs in a period.
    most: usize,
    hash_key: HashKey,
}

/// The reason why a flow must not forward datagrams of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Conflict {
    #[error("QUIC connection of another flow")]
    OtherFlow,
    #[error("too many QUIC connections")]
    TooMany,
}

impl Begun {
    /// An empty set, which takes `most` new IDs in a period. `hash_key` must be random.
    pub(super) fn new(most: usize, hash_key: [u8; 16]) -> Self {
        let hash_key = HashKey(hash_key);
        Self {
            recent: HashSet::with_hasher(hash_key.clone()),
            older: HashSet::with_hasher(hash_key.clone()),
            since: Instant::from_micros(0),
            most,
            hash_key,
        }
    }

    /// Notes that a flow forwards datagrams of a connection. `again` is whether the same flow has forwarded datagrams
    /// of the connection before.
    pub(super) fn note(&mut self, id: &[u8], again: bool, now: Instant) -> Result<(), Conflict> {
        self.forget(now);
        let hash = self.hash_key.hash_one(id);
        if !again && (self.recent.contains(&hash) || self.older.contains(&hash)) {
            return Err(Conflict::OtherFlow);
        }
        if self.recent.len() >= self.most && !self.recent.contains(&hash) {
            return Err(Conflict::TooMany);
        }
        self.recent.insert(hash);
        Ok(())
    }

    fn forget(&mut self, now: Instant) {
        let age = now.since(self.since);
        if age < MEMORY {
            return;
        }
        let recent = mem::replace(&mut self.recent, HashSet::with_hasher(self.hash_key.clone()));
        self.older = if age < 2 * MEMORY { recent } else { HashSet::with_hasher(self.hash_key.clone()) };
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_IDS: usize = 100;

    fn second(number: u64) -> Instant {
        Instant::from_micros(number * 1_000_000)
    }

    #[test]
    fn a_connection_belongs_to_one_flow_for_two_minutes() {
        let mut begun = Begun::new(8, [1; 16]);
        assert_eq!(begun.note(b"one", false, second(1000)), Ok(()));
        assert_eq!(begun.note(b"two", false, second(1000)), Ok(()));
        assert_eq!(begun.note(b"one", true, second(1000)), Ok(()));
        assert_eq!(begun.note(b"one", false, second(1119)), Err(Conflict::OtherFlow));
        assert_eq!(begun.note(b"one", true, second(1119)), Ok(()));
        assert_eq!(begun.note(b"one", false, second(1230)), Err(Conflict::OtherFlow));
        assert_eq!(begun.note(b"two", false, second(1360)), Ok(()));
        assert_eq!(begun.note(b"one", false, second(1600)), Ok(()));
    }

    #[test]
    fn their_number_is_bounded() {
        let mut begun = Begun::new(MAX_IDS, [1; 16]);
        for number in 0..MAX_IDS as u32 {
            assert_eq!(begun.note(&number.to_be_bytes(), false, second(1)), Ok(()));
        }
        assert_eq!(begun.note(b"one more", false, second(1)), Err(Conflict::TooMany));
        assert_eq!(begun.note(&[0; 4], true, second(1)), Ok(()));
        assert_eq!(begun.note(b"one more", false, second(121)), Ok(()));
    }
}
