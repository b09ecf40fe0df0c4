//! An allocator for tests that counts allocations and lets some of them fail (feature `failing-allocator`).
//!
//! ```
//! use sys::failing_allocator::{FailingAllocator, Plan, count};
//!
//! #[global_allocator]
//! static ALLOCATOR: FailingAllocator = FailingAllocator;
//!
//! let (refused, allocations) = count(Plan::Only(1), || Vec::<u8>::new().try_reserve(10).is_err());
//! assert_eq!((refused, allocations), (true, 1));
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

/// The allocator. It is the system's, except that it lets allocations fail while [`count`] runs.
#[derive(Debug)]
pub struct FailingAllocator;

/// The allocations that fail, by their number. The first allocation has the number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// None.
    None,
    /// One.
    Only(u64),
    /// This one and all later ones.
    From(u64),
}

/// The state of one thread.
#[derive(Clone, Copy)]
struct State {
    /// None: allocations are not counted.
    plan: Option<Plan>,
    count: u64,
    exempt: u32,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State { plan: None, count: 0, exempt: 0 }) };
}

/// Runs `work` in this thread with a plan. Also returns how many allocations the work has made, without [`exempt`]
/// ones. Of several calls within each other, the innermost counts.
pub fn count<R>(plan: Plan, work: impl FnOnce() -> R) -> (R, u64) {
    let before = STATE.replace(State { plan: Some(plan), count: 0, exempt: 0 });
    let result = work();
    let counted = STATE.replace(before).count;
    (result, counted)
}

/// From the call with `true` until the call with `false`, allocations of this thread succeed and are not counted.
/// Calls may be nested.
pub fn exempt(begin: bool) {
    let mut state = STATE.get();
    state.exempt = if begin { state.exempt + 1 } else { state.exempt.saturating_sub(1) };
    STATE.set(state);
}

/// Counts an allocation. Returns whether it must fail.
fn fails() -> bool {
    let mut state = STATE.get();
    let Some(plan) = state.plan.filter(|_| state.exempt == 0) else { return false };
    state.count += 1;
    STATE.set(state);
    match plan {
        Plan::None => false,
        Plan::Only(number) => state.count == number,
        Plan::From(number) => state.count >= number,
    }
}

// SAFETY: all calls are passed on to the system's allocator with the same arguments, or fail by a null pointer. The
// state of a thread is never destroyed and needs no allocation.
unsafe impl GlobalAlloc for FailingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        if fails() { ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, and the memory is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        if fails() { ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && fails() {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract, and the memory is the system allocator's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
