//! Parts of this kit that a test excludes from its own measurements, such as counts of allocations.

use std::cell::Cell;

std::thread_local! {
    static SWITCH: Cell<Option<fn(bool)>> = const { Cell::new(None) };
}

/// From now on, this thread calls `switch` with true when it enters the host or the link of this kit, and with false
/// when it leaves them.
pub fn exempt_by(switch: fn(bool)) {
    SWITCH.set(Some(switch));
}

/// The time from its creation to its end is spent in this kit.
pub(super) struct Exempt;

impl Exempt {
    pub(super) fn begin() -> Self {
        SWITCH.get().into_iter().for_each(|switch| switch(true));
        Self
    }
}

impl Drop for Exempt {
    fn drop(&mut self) {
        SWITCH.get().into_iter().for_each(|switch| switch(false));
    }
}
