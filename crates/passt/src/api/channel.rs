//! The channel between the API thread and the thread that handles packets: one ask, one answer, and a bounded ring of
//! events. Neither side ever waits for the other one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use engine::events::Event;
use engine::timer::Instant;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io;

use super::MAX_QUEUED;
use super::ask::{Answer, Ask};
use crate::errno::retry;

/// Maximum number of batches in the ring. A batch has at least one event.
const BATCHES: usize = 1024;

/// The values that both ends share.
#[derive(Debug, Default)]
struct Shared {
    /// Whether a client is subscribed to events.
    subscribed: AtomicBool,
    /// Whether the thread that handles packets has dropped its end.
    over: AtomicBool,
    /// Number of events in the ring.
    queued: AtomicUsize,
    /// Memory of the events in the ring, in bytes.
    bytes: AtomicUsize,
    /// Number of events that were lost because the ring was full, and were not reported yet.
    lost: AtomicU64,
}

/// The events of a round.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The time, in seconds since 1970.
    pub(super) time: f64,
    /// The time on the engine's clock.
    pub(super) now: Instant,
    /// The events.
    pub(super) content: Content,
    /// Memory of the events, in bytes.
    bytes: usize,
}

/// The content of a batch.
#[derive(Debug)]
pub(crate) enum Content {
    /// Events of flows.
    Flows(Vec<Event>),
    /// A change of rules.
    Note(Note),
}

/// A change of rules.
#[derive(Debug)]
pub(crate) enum Note {
    /// Other forwarding rules are in force. The text is a remark.
    Rules(String),
    /// Other rules about destinations are in force. The text says how many flows have ended.
    Policy(String),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Flows(events) => events.len(),
            Self::Note(_) => 1,
        }
    }

    /// Removes the last events, so that at most `most` are left, which use at most `most_bytes` bytes. Returns the memory of
    /// what is left, in bytes.
    fn cut(&mut self, most: usize, most_bytes: usize) -> usize {
        match self {
            Self::Flows(events) => {
                let (mut count, mut bytes) = (0, 0);
                for event in events.iter().take(most) {
                    let more = event.bytes();
                    if bytes + more > most_bytes {
                        break;
                    }
                    (count, bytes) = (count + 1, bytes + more);
                }
                events.truncate(count);
                if events.capacity() > 2 * count {
                    events.shrink_to_fit();
                }
                bytes
            }
            Self::Note(Note::Rules(text) | Note::Policy(text)) => text.capacity(),
        }
    }
}

/// The end of the API thread.
#[derive(Debug)]
pub(super) struct ApiEnd {
    asks: SyncSender<Ask>,
    answers: Receiver<Answer>,
    batches: Receiver<Batch>,
    shared: Arc<Shared>,
    /// Readable if there is an answer or an event.
    wake: Arc<OwnedFd>,
    other: Arc<OwnedFd>,
}

/// The end of the thread that handles packets. Its descriptor is readable if there is an ask.
#[derive(Debug)]
pub(crate) struct ShardEnd {
    asks: Receiver<Ask>,
    answers: SyncSender<Answer>,
    batches: SyncSender<Batch>,
    /// Maximum memory of the events in the ring, in bytes.
    most_bytes: usize,
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    other: Arc<OwnedFd>,
    /// The API thread.
    thread: Option<JoinHandle<()>>,
}

/// Creates a channel. The events in its ring use at most `most_bytes` bytes.
///
/// # Errors
/// The kernel refuses a descriptor.
pub(super) fn channel(most_bytes: usize) -> io::Result<(ApiEnd, ShardEnd)> {
    let eventfd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new);
    let (api, shard) = (eventfd()?, eventfd()?);
    let (asks, asked) = sync_channel(1);
    let (answers, answered) = sync_channel(1);
    let (batches, received) = sync_channel(BATCHES);
    let shared = Arc::<Shared>::default();
    let api_end = ApiEnd {
        asks,
        answers: answered,
        batches: received,
        shared: shared.clone(),
        wake: api.clone(),
        other: shard.clone(),
    };
    Ok((
        api_end,
        ShardEnd { asks: asked, answers, batches, most_bytes, shared, wake: shard, other: api, thread: None },
    ))
}

/// Makes an eventfd readable. This fails only if it is readable already.
fn signal(eventfd: &OwnedFd) {
    let _ = retry(|| io::write(eventfd, &1_u64.to_ne_bytes()));
}

fn clear(eventfd: &OwnedFd) {
    let _ = io::read(eventfd, &mut [0_u8; 8]);
}

impl ApiEnd {
    /// Sends an ask. Returns false if the other thread has ended, or has not answered the previous ask.
    pub(super) fn ask(&self, ask: Ask) -> bool {
        let sent = self.asks.try_send(ask).is_ok();
        signal(&self.other);
        sent
    }

    /// The eventfd that wakes this thread.
    pub(super) fn wake(&self) -> Arc<OwnedFd> {
        self.wake.clone()
    }

    /// Must be called when the descriptor is readable, before the answer and the events are taken.
    pub(super) fn clear(&self) {
        clear(&self.wake);
    }

    /// The answer to the ask, if it has arrived.
    pub(super) fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// The next events.
    pub(super) fn batch(&self) -> Option<Batch> {
        let batch = self.batches.try_recv().ok()?;
        self.shared.queued.fetch_sub(batch.content.len(), Ordering::Relaxed);
        self.shared.bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        Some(batch)
    }

    /// Number of events that were lost since the last call.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.swap(0, Ordering::Relaxed)
    }

    /// Whether the other end was dropped.
    pub(super) fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    /// Sets whether events are wanted.
    pub(super) fn subscribe(&self, wanted: bool) {
        self.shared.subscribed.store(wanted, Ordering::Relaxed);
    }
}

impl AsFd for ApiEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl ShardEnd {
    /// Waits for the end of the API thread when this end is dropped.
    pub(super) fn ends_with(&mut self, thread: JoinHandle<()>) {
        self.thread = Some(thread);
    }

    /// The next ask. Must be called when the descriptor is readable.
    pub(crate) fn next(&self) -> Option<Ask> {
        clear(&self.wake);
        self.asks.try_recv().ok()
    }

    /// Sends the answer to the ask.
    pub(crate) fn answer(&self, answer: Answer) {
        // There is room: there is no other ask. If the API thread has ended, nobody needs the answer.
        let _ = self.answers.try_send(answer);
        signal(&self.other);
    }

    /// Whether a client is subscribed to events.
    pub(crate) fn is_subscribed(&self) -> bool {
        self.shared.subscribed.load(Ordering::Relaxed)
    }

    /// Passes events on, if a client is subscribed. What does not fit into the ring is lost, and counted. `time` is in
    /// seconds since 1970.
    pub(crate) fn publish(&self, mut content: Content, time: f64, now: Instant) {
        let shared = &self.shared;
        if content.len() == 0 || !self.is_subscribed() {
            return;
        }
        let room = MAX_QUEUED.saturating_sub(shared.queued.load(Ordering::Relaxed));
        let all = content.len();
        let bytes = content.cut(room, self.most_bytes.saturating_sub(shared.bytes.load(Ordering::Relaxed)));
        let len = content.len();
        let mut lost = all - len;
        if len > 0 {
            // The count comes first: the other thread may take the batch at once.
            shared.queued.fetch_add(len, Ordering::Relaxed);
            shared.bytes.fetch_add(bytes, Ordering::Relaxed);
            if self.batches.try_send(Batch { time, now, content, bytes }).is_err() {
                shared.queued.fetch_sub(len, Ordering::Relaxed);
                shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
                lost += len;
            }
        }
        shared.lost.fetch_add(lost as u64, Ordering::Relaxed);
        signal(&self.other);
    }
}

impl Drop for ShardEnd {
    /// Ends the API thread, so that it removes what it has in the file system.
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        signal(&self.other);
        if let Some(thread) = self.thread.take() {
            // A panic was logged, and there is nothing left to do.
            let _ = thread.join();
        }
    }
}

impl AsFd for ShardEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Content {
        Content::Note(Note::Rules(String::new()))
    }

    /// The ring is bounded by batches and by events. What was lost is counted once.
    #[test]
    fn events_beyond_the_bounds_are_counted() {
        let (api, shard) = channel(usize::MAX).unwrap();
        let now = Instant::from_micros(0);
        shard.publish(note(), 0.0, now);
        assert!(api.batch().is_none(), "nobody is subscribed");
        api.subscribe(true);
        (0..BATCHES + 5).for_each(|_| shard.publish(note(), 0.0, now));
        assert_eq!((api.lost(), api.lost()), (5, 0));
        let taken = std::iter::from_fn(|| api.batch()).count();
        assert_eq!(taken, BATCHES);

        let refusal = || {
            let protocol = engine::flow::Protocol::Udp;
            let end: std::net::SocketAddr = "192.0.2.1:9".parse().unwrap();
            let ends = engine::flow::Endpoints { guest: end, remote: end };
            let what = engine::events::Refused::Flow { protocol, ends };
            Event::Refusal(engine::events::Refusal { what, basis: Default::default(), audit: false })
        };
        let many = |count: usize| Content::Flows((0..count).map(|_| refusal()).collect());
        shard.publish(many(MAX_QUEUED - 1), 0.0, now);
        shard.publish(many(3), 0.0, now);
        shard.publish(many(1), 0.0, now);
        assert_eq!(api.lost(), 3);
        let taken: usize = std::iter::from_fn(|| api.batch()).map(|batch| batch.content.len()).sum();
        assert_eq!(taken, MAX_QUEUED);
        shard.publish(many(1), 0.0, now);
        assert!(api.batch().is_some() && api.lost() == 0);

        // With a budget, the memory of the events counts, too.
        let (api, shard) = channel(3 * refusal().bytes()).unwrap();
        api.subscribe(true);
        shard.publish(many(2), 0.0, now);
        shard.publish(many(2), 0.0, now);
        assert_eq!(
            (api.batch().unwrap().content.len(), api.batch().unwrap().content.len(), api.lost()),
            (2, 1, 1)
        );
        shard.publish(many(4), 0.0, now);
        assert_eq!((api.batch().unwrap().content.len(), api.lost()), (3, 1));
    }

    #[test]
    fn one_ask_at_a_time() {
        let (api, shard) = channel(usize::MAX).unwrap();
        assert!(shard.next().is_none() && api.answer().is_none());
        assert!(api.ask(Ask::Counts));
        assert!(!api.ask(Ask::Rules), "the first one was not taken yet");
        assert!(matches!(shard.next(), Some(Ask::Counts)));
        shard.answer(Answer::Ended(true));
        assert!(matches!(api.answer(), Some(Answer::Ended(true))));
        drop(shard);
        assert!(!api.ask(Ask::Counts));
    }
}
