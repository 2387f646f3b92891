//! The table behind the handles: a handle is looked up, never followed.
//!
//! A handle is a number made of a kind, a process epoch, a generation and an index. The slot at the index
//! holds the whole number of the handle that is live there, so that every other number is simply wrong:
//! freed (its generation has passed), of another kind, of another process, made up.
//!
//! No lock is taken anywhere: a thread that is stopped in the middle, or that does not exist in the child of
//! a fork, can leave a slot unusable, but never make another wait. A slot's state is one word:
//!
//! ```text
//! generation (24 bits) | phase (2 bits) | pins (32 bits)
//! ```
//!
//! Looking up adds a pin, which keeps the value until the pin is dropped; removing makes the slot `DYING`,
//! which takes no new pins; whoever then drops the last pin takes the value out and makes the slot `EMPTY`
//! with the next generation. A slot that has used up its generations is not used again.

use std::{
    cell::UnsafeCell,
    ops::Deref,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
};

const INDEX_BITS: u32 = 23;
const GENERATION_BITS: u32 = 24;
const EPOCH_BITS: u32 = 12;
const GENERATION_SHIFT: u32 = INDEX_BITS;
const EPOCH_SHIFT: u32 = GENERATION_SHIFT + GENERATION_BITS;
/// Four bits of kind; the top bit stays 0, so that a handle fits a signed integer of any language.
const KIND_SHIFT: u32 = EPOCH_SHIFT + EPOCH_BITS;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;

const EMPTY: u64 = 0;
const LIVE: u64 = 1 << 32;
const DYING: u64 = 2 << 32;
const PHASE_MASK: u64 = 3 << 32;
const PINS_MASK: u64 = (1 << 32) - 1;
const STATE_GENERATION_SHIFT: u32 = 34;

/// The first segment has this many slots; each next one twice as many.
const FIRST_SEGMENT: u32 = 64;
const SEGMENTS: usize = 17;
/// What the segments hold together; fits the bits of an index.
const MOST: u32 = (1 << INDEX_BITS) - FIRST_SEGMENT;
const NO_INDEX: u32 = u32::MAX;

/// Which epoch a handle says that it is from.
pub(crate) fn epoch_of(handle: u64) -> u32 {
    ((handle >> EPOCH_SHIFT) & EPOCH_MASK) as u32
}

/// Which kind a handle says that it is of.
pub(crate) fn kind_of(handle: u64) -> u8 {
    ((handle >> KIND_SHIFT) & 15) as u8
}

/// The epoch of a process in the line of forks, as it is in handles.
pub(crate) fn epoch(process_generation: u32) -> u32 {
    process_generation & EPOCH_MASK as u32
}

pub(crate) struct Table<T: Send + Sync> {
    segments: [AtomicPtr<Slot<T>>; SEGMENTS],
    /// Slots ever used.
    used: AtomicU32,
    /// Top of the stack of empty slots: index in the low half; in the high half a count of changes, so that a
    /// slot that went and came back meanwhile is not mistaken for one that stayed.
    free: AtomicU64,
    /// Takes what a handle stood for, once nobody uses it.
    dispose: fn(u64, T),
}

struct Slot<T> {
    state: AtomicU64,
    /// The handle that is live here; stands as long as the generation does.
    handle: AtomicU64,
    next_free: AtomicU32,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: a value is reached by shared reference only while pinned, which needs T: Sync, and is moved in
// and out by one thread alone (see `insert` and `reclaim`), which needs T: Send.
unsafe impl<T: Send + Sync> Sync for Table<T> {}

impl<T: Send + Sync> Table<T> {
    pub(crate) const fn new(dispose: fn(u64, T)) -> Self {
        Self {
            segments: [const { AtomicPtr::new(ptr::null_mut()) }; SEGMENTS],
            used: AtomicU32::new(0),
            free: AtomicU64::new(NO_INDEX as u64),
            dispose,
        }
    }

    /// Puts `value` into the table. `None` if it is full: 8 million handles.
    pub(crate) fn insert(&self, kind: u8, epoch: u32, value: T) -> Option<u64> {
        let index = self.pop_free().or_else(|| self.fresh())?;
        let slot = self.slot(index)?;
        let generation = slot.state.load(Ordering::Acquire) >> STATE_GENERATION_SHIFT;
        let handle = (u64::from(kind & 15) << KIND_SHIFT)
            | (u64::from(epoch) << EPOCH_SHIFT)
            | (generation << GENERATION_SHIFT)
            | u64::from(index);
        // SAFETY: the slot is EMPTY and was taken off the free list (or is fresh) by this thread alone, so
        // nobody else reads or writes its value before the state says LIVE.
        unsafe { *slot.value.get() = Some(value) };
        slot.handle.store(handle, Ordering::Relaxed);
        slot.state.store((generation << STATE_GENERATION_SHIFT) | LIVE, Ordering::Release);
        Some(handle)
    }

    /// The value behind `handle`, kept alive until the pin is dropped.
    pub(crate) fn pin(&self, handle: u64) -> Option<Pin<'_, T>> {
        let slot = self.change(handle, |state| state + 1)?.0;
        Some(Pin { table: self, slot })
    }

    /// Ends `handle`. Says whether there was one; its value is disposed of as soon as nobody uses it.
    pub(crate) fn remove(&self, handle: u64) -> bool {
        let Some((slot, state)) = self.change(handle, |state| (state & !PHASE_MASK) | DYING) else { return false };
        if state & PINS_MASK == 0 {
            self.reclaim(slot);
        }
        true
    }

    /// Swaps in a changed state, if `handle` is live. Gives the state as it was.
    fn change(&self, handle: u64, to: impl Fn(u64) -> u64) -> Option<(&Slot<T>, u64)> {
        let slot = self.slot((handle & INDEX_MASK) as u32)?;
        let mut state = slot.state.load(Ordering::Acquire);
        loop {
            let live = state & PHASE_MASK == LIVE
                && state >> STATE_GENERATION_SHIFT == (handle >> GENERATION_SHIFT) & GENERATION_MASK
                && slot.handle.load(Ordering::Relaxed) == handle;
            if !live {
                return None;
            }
            match slot.state.compare_exchange_weak(state, to(state), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((slot, state)),
                Err(now) => state = now,
            }
        }
    }

    /// Takes the value out of a DYING slot without pins.
    fn reclaim(&self, slot: &Slot<T>) {
        let handle = slot.handle.load(Ordering::Relaxed);
        // SAFETY: DYING takes no new pins and none is left, so this thread alone reaches the value: only one
        // thread sees the last pin go, or removes a slot without pins.
        let value = unsafe { (*slot.value.get()).take() };
        let generation = (slot.state.load(Ordering::Relaxed) >> STATE_GENERATION_SHIFT) + 1;
        if generation <= GENERATION_MASK {
            slot.state.store((generation << STATE_GENERATION_SHIFT) | EMPTY, Ordering::Release);
            self.push_free((handle & INDEX_MASK) as u32, slot);
        }
        if let Some(value) = value {
            (self.dispose)(handle, value);
        }
    }

    fn fresh(&self) -> Option<u32> {
        let index =
            self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < MOST).then_some(used + 1));
        let index = index.ok()?;
        let (segment, _) = place(index);
        let segment_pointer = self.segments.get(segment)?;
        if segment_pointer.load(Ordering::Acquire).is_null() {
            let slots: Box<[Slot<T>]> = (0..FIRST_SEGMENT << segment).map(|_| Slot::empty()).collect();
            let slots = Box::into_raw(slots);
            let first = slots.cast::<Slot<T>>();
            if segment_pointer.compare_exchange(ptr::null_mut(), first, Ordering::AcqRel, Ordering::Acquire).is_err()
            {
                // SAFETY: made by into_raw just above and seen by nobody: another thread was first.
                drop(unsafe { Box::from_raw(slots) });
            }
        }
        Some(index)
    }

    /// The slot at `index`, if that was ever used.
    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        let (segment, offset) = place(index);
        let first = self.segments.get(segment)?.load(Ordering::Acquire);
        if first.is_null() {
            return None;
        }
        // SAFETY: segments are never freed while the table lives, and `place` gives an offset within one.
        Some(unsafe { &*first.add(offset) })
    }

    fn push_free(&self, index: u32, slot: &Slot<T>) {
        let mut top = self.free.load(Ordering::Relaxed);
        loop {
            slot.next_free.store(top as u32, Ordering::Relaxed);
            let new = next_count(top) | u64::from(index);
            match self.free.compare_exchange_weak(top, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    fn pop_free(&self) -> Option<u32> {
        let mut top = self.free.load(Ordering::Acquire);
        loop {
            let index = top as u32;
            if index == NO_INDEX {
                return None;
            }
            let next = self.slot(index)?.next_free.load(Ordering::Relaxed);
            let new = next_count(top) | u64::from(next);
            match self.free.compare_exchange_weak(top, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(now) => top = now,
            }
        }
    }
}

fn next_count(top: u64) -> u64 {
    ((top >> 32).wrapping_add(1)) << 32
}

/// Segment and offset of a slot.
fn place(index: u32) -> (usize, usize) {
    let counted = index.saturating_add(FIRST_SEGMENT);
    let segment = counted.ilog2() - FIRST_SEGMENT.ilog2();
    (segment as usize, (counted - (FIRST_SEGMENT << segment)) as usize)
}

impl<T> Slot<T> {
    fn empty() -> Self {
        Self {
            state: AtomicU64::new(EMPTY),
            handle: AtomicU64::new(0),
            next_free: AtomicU32::new(NO_INDEX),
            value: UnsafeCell::new(None),
        }
    }
}

impl<T: Send + Sync> Drop for Table<T> {
    fn drop(&mut self) {
        for (segment, pointer) in self.segments.iter_mut().enumerate() {
            let first = *pointer.get_mut();
            if !first.is_null() {
                let slots = ptr::slice_from_raw_parts_mut(first, (FIRST_SEGMENT as usize) << segment);
                // SAFETY: made by into_raw of a box of this length, and the table is not borrowed any more.
                drop(unsafe { Box::from_raw(slots) });
            }
        }
    }
}

/// A value that is in use. It keeps no reference to the value: dropping it may be what ends the value, and a reference
/// that a function was given has to stay good until that function returns.
pub(crate) struct Pin<'a, T: Send + Sync> {
    table: &'a Table<T>,
    slot: &'a Slot<T>,
}

impl<T: Send + Sync> Deref for Pin<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the slot was LIVE when this pin was counted, so it has a value, and nobody takes or writes that while
        // the pin lasts.
        unsafe { (*self.slot.value.get()).as_ref().unwrap_unchecked() }
    }
}

impl<T: Send + Sync> Drop for Pin<'_, T> {
    fn drop(&mut self) {
        let before = self.slot.state.fetch_sub(1, Ordering::AcqRel);
        if before & PHASE_MASK == DYING && before & PINS_MASK == 1 {
            self.table.reclaim(self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn places_are_dense_and_within_their_segment() {
        assert_eq!((place(0), place(63), place(64)), ((0, 0), (0, 63), (1, 0)));
        let (segment, offset) = place(MOST - 1);
        assert!(segment < SEGMENTS && offset < (FIRST_SEGMENT as usize) << segment);
        assert!(place(u32::MAX).0 >= SEGMENTS);
    }

    #[test]
    fn only_the_live_handle_is_found() {
        let table = Table::new(|_, _: String| ());
        let handle = table.insert(3, 7, "x".to_owned()).unwrap();
        assert_eq!(table.pin(handle).as_deref().map(String::as_str), Some("x"));
        assert!(handle > 0 && handle >> 63 == 0);
        for bit in 0..64 {
            assert!(table.pin(handle ^ (1 << bit)).is_none(), "bit {bit}");
        }
        assert!(table.remove(handle) && !table.remove(handle) && table.pin(handle).is_none());
        let again = table.insert(3, 7, "y".to_owned()).unwrap();
        assert!(again != handle && again & INDEX_MASK == handle & INDEX_MASK && table.pin(handle).is_none());
        assert_eq!(epoch_of(again), 7);
    }

    #[test]
    fn a_value_outlives_its_handle_while_it_is_in_use() {
        static DISPOSED: AtomicUsize = AtomicUsize::new(0);
        let table = Table::new(|_, _: u8| {
            DISPOSED.fetch_add(1, Ordering::SeqCst);
        });
        let handle = table.insert(1, 0, 5).unwrap();
        let (one, two) = (table.pin(handle).unwrap(), table.pin(handle).unwrap());
        assert!(table.remove(handle) && table.pin(handle).is_none());
        drop(one);
        assert_eq!((*two, DISPOSED.load(Ordering::SeqCst)), (5, 0));
        drop(two);
        assert_eq!(DISPOSED.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_slot_retires_after_its_last_generation() {
        let table = Table::new(|_, _: u8| ());
        let handle = table.insert(1, 0, 1).unwrap();
        let last = (GENERATION_MASK << STATE_GENERATION_SHIFT) | EMPTY;
        assert!(table.remove(handle));
        table.slot(0).unwrap().state.store(last, Ordering::SeqCst);
        let oldest = table.insert(1, 0, 2).unwrap();
        assert_eq!(oldest & INDEX_MASK, 0);
        assert!(table.remove(oldest));
        assert_ne!(table.insert(1, 0, 3).unwrap() & INDEX_MASK, 0);
    }

    #[test]
    fn threads_agree_on_who_removes() {
        static DISPOSED: AtomicUsize = AtomicUsize::new(0);
        let (rounds, threads) = if cfg!(miri) { (20, 3) } else { (5_000, 8) };
        let table = Table::new(|_, _: Vec<u64>| {
            DISPOSED.fetch_add(1, Ordering::SeqCst);
        });
        let (shared, removed) = (AtomicU64::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (table, shared, removed) = (&table, &shared, &removed);
                scope.spawn(move || {
                    for round in 0..rounds {
                        let mine = table.insert(1, 0, vec![round, thread]).unwrap();
                        let other = shared.swap(mine, Ordering::SeqCst);
                        let pinned = table.pin(mine);
                        assert!(pinned.is_none_or(|value| *value == [round, thread]));
                        removed.fetch_add(usize::from(table.remove(other)), Ordering::SeqCst);
                        assert!(!table.remove(other));
                    }
                });
            }
        });
        let made = (threads * rounds) as usize;
        assert_eq!((removed.load(Ordering::SeqCst), DISPOSED.load(Ordering::SeqCst)), (made - 1, made - 1));
    }
}
