//! What one session holds, or may hold, as this process knows it.
//!
//! Session locks are re-entrant: the server would grant a second time what the session has. So this is asked first. A
//! lock that several leases of this process share is taken from the server once, by the first, and given back by the last.
//!
//! Nor does the server know whose a lock is: what is sent late to free the lock of one frees that of the next. So a lock is not
//! another's before all that frees it has been handed to the connection, which keeps the order: see [`Freeing`].

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    Error, ErrorKind, LossReason, Mode, OwnerToken,
    backend::{Attempt, Losable},
    clock::Instant,
    engine::timer::until,
};

#[derive(Default)]
pub(super) struct Locks {
    table: Mutex<Table>,
    /// The server has answered something.
    answered: Notify,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<i64, Local>,
    /// Permits: whose, and whether the server has given it.
    slots: HashMap<i64, (OwnerToken, bool)>,
    /// To be told if the session ends.
    leases: HashMap<OwnerToken, Weak<dyn Losable>>,
    /// Whose locks are about to be freed.
    freeing: HashMap<OwnerToken, Unsent>,
    /// Why its leases are lost, once it is over.
    ended: Option<LossReason>,
}

/// Requests to free what somebody has that are not yet handed to the connection.
#[derive(Default)]
struct Unsent {
    requests: usize,
    /// Another request has freed it meanwhile: what it had is to be forgotten after the last of these.
    freed: Option<Vec<i64>>,
}

struct Local {
    key: String,
    mode: Mode,
    /// More than one only where it is shared.
    owners: Vec<OwnerToken>,
    phase: Phase,
    /// Since when an answer of the server has been awaited, unless it is held.
    asked: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The server has been asked for it.
    Taking,
    Held,
    /// The server has been asked to free it, and its answer is not known.
    Freeing,
}

/// What a reservation means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reserved {
    /// The server is to be asked.
    Take,
    /// The session has it already.
    Join,
}

/// What the server is asked to free.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ToFree {
    pub(super) alone: Vec<i64>,
    pub(super) shared: Vec<i64>,
    pub(super) slots: Vec<i64>,
    /// It was asked before: that it finds nothing held proves nothing.
    pub(super) again: bool,
}

/// What is about to be freed. To be dropped as soon as the connection has the request, or when there is to be none.
pub(super) struct Freeing<'a> {
    locks: &'a Locks,
    owner: OwnerToken,
    pub(super) what: ToFree,
}

impl Drop for Freeing<'_> {
    fn drop(&mut self) {
        let mut table = self.locks.table();
        let Entry::Occupied(mut entry) = table.freeing.entry(self.owner) else { return };
        entry.get_mut().requests -= 1;
        if entry.get().requests == 0
            && let Some(ids) = entry.remove().freed
        {
            table.forget(&ids, self.owner);
            self.locks.answered.notify_waiters();
        }
    }
}

impl Table {
    fn forget(&mut self, ids: &[i64], owner: OwnerToken) {
        for id in ids {
            if let Entry::Occupied(mut entry) = self.by_id.entry(*id) {
                entry.get_mut().owners.retain(|other| *other != owner);
                if entry.get().owners.is_empty() {
                    entry.remove();
                }
            }
        }
        self.slots.retain(|_, (whose, _)| *whose != owner);
    }

    /// Of the permits that `owner` has reserved this one is left to it, or none; all, as long as they are about to be freed.
    fn keep(&mut self, slot: Option<i64>, owner: OwnerToken) {
        if !self.freeing.contains_key(&owner) {
            self.slots.retain(|reserved, (whose, _)| *whose != owner || Some(*reserved) == slot);
        }
    }
}

impl Locks {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `look` finds, as soon as that does not hang on an answer to somebody else of this process: not later than `expires`.
    pub(super) async fn once_answered<T>(
        &self,
        expires: Instant,
        mut look: impl FnMut() -> Result<T, Attempt>,
    ) -> Result<T, Attempt> {
        loop {
            let mut answered = std::pin::pin!(self.answered.notified());
            answered.as_mut().enable(); // before the look, as what comes after that counts
            let found = look();
            if !matches!(found, Err(Attempt::Busy { contended: true, .. }))
                || until(Some(expires), answered).await.is_none()
            {
                return found;
            }
        }
    }

    /// Reserves all of `wanted` for one claim of this process, or none. A server that has not answered for `patience`
    /// what an earlier claim asked is out of reach: nobody is known to hold it.
    pub(super) fn reserve(
        &self,
        wanted: &[(i64, &str)],
        mode: Mode,
        owner: OwnerToken,
        patience: Duration,
    ) -> Result<Reserved, Attempt> {
        let mut table = self.table();
        let now = Instant::now();
        if table.ended.is_some() {
            return Err(Attempt::Refused(Error::unavailable("the session has ended")));
        }
        for (id, key) in wanted {
            let Some(local) = table.by_id.get(id) else { continue };
            if local.key != *key {
                // To wait would be a deadlock if one task held the one and asked for the other.
                let why = format!("has the same advisory lock as {:?}, which is held here", local.key);
                return Err(Attempt::Refused(Error::new(ErrorKind::Conflict, why)));
            }
            if local.phase != Phase::Held && now.since(local.asked) >= patience {
                let why = "no answer yet to an earlier attempt on the same lock";
                return Err(Attempt::Refused(Error::unavailable(why)));
            }
            if mode == Mode::Exclusive || mode.name() != local.mode.name() {
                let foreign = (mode.name() == "permit") != (local.mode.name() == "permit");
                return Err(Attempt::Busy { free_in: None, foreign, contended: false, residue: false });
            }
            if local.phase != Phase::Held {
                return Err(Attempt::Busy { free_in: None, foreign: false, contended: true, residue: false });
            }
        }
        let mut reserved = Reserved::Take;
        for (id, key) in wanted {
            match table.by_id.entry(*id) {
                Entry::Occupied(mut entry) => {
                    entry.get_mut().owners.push(owner);
                    reserved = Reserved::Join;
                }
                Entry::Vacant(entry) => {
                    let (key, owners) = ((*key).to_owned(), vec![owner]);
                    entry.insert(Local { key, mode, owners, phase: Phase::Taking, asked: now });
                }
            }
        }
        Ok(reserved)
    }

    /// Reserves those of `slots` that no permit of this process has. If there are none, it is contended where another permit of
    /// this process has them only until the server has answered.
    pub(super) fn reserve_slots(&self, slots: &[i64], owner: OwnerToken) -> Result<Vec<i64>, Attempt> {
        let mut table = self.table();
        let (free, taken): (Vec<_>, Vec<_>) = slots.iter().partition(|slot| !table.slots.contains_key(slot));
        if free.is_empty() {
            let contended = taken.iter().any(|slot| table.slots.get(slot).is_some_and(|(_, given)| !given));
            return Err(Attempt::Busy { free_in: None, foreign: false, contended, residue: false });
        }
        table.slots.extend(free.iter().map(|slot| (*slot, (owner, false))));
        Ok(free)
    }

    /// None of the slots was given.
    pub(super) fn free_slots(&self, owner: OwnerToken) {
        self.table().keep(None, owner);
        self.answered.notify_waiters();
    }

    /// The server gave what was reserved, and of the slots this one.
    pub(super) fn taken(&self, ids: &[i64], slot: Option<i64>, owner: OwnerToken) {
        let mut table = self.table();
        for id in ids {
            if let Some(local) = table.by_id.get_mut(id)
                && local.phase == Phase::Taking
                && local.owners == [owner]
            {
                local.phase = Phase::Held;
            }
        }
        table.keep(slot, owner);
        table.slots.values_mut().filter(|(whose, _)| *whose == owner).for_each(|(_, given)| *given = true);
        self.answered.notify_waiters();
    }

    /// To be called before the server is asked to free what `owner` has of `ids`, and nothing is to be awaited in between. What
    /// others share stays.
    pub(super) fn begin_freeing(&self, ids: &[i64], owner: OwnerToken) -> Freeing<'_> {
        let (mut table, now) = (self.table(), Instant::now());
        let mut to_free = ToFree::default();
        for id in ids {
            let Some(local) = table.by_id.get_mut(id) else { continue };
            if local.owners == [owner] {
                to_free.again |= local.phase == Phase::Freeing;
                if local.phase == Phase::Held {
                    local.asked = now;
                }
                local.phase = Phase::Freeing;
                if local.mode == Mode::Exclusive { &mut to_free.alone } else { &mut to_free.shared }.push(*id);
            } else {
                local.owners.retain(|other| *other != owner);
            }
        }
        let slots = table.slots.iter().filter(|(_, (whose, _))| *whose == owner);
        to_free.slots = slots.map(|(slot, _)| *slot).collect();
        table.freeing.entry(owner).or_default().requests += 1;
        Freeing { locks: self, owner, what: to_free }
    }

    /// The claim certainly does not hold any more.
    pub(super) fn forget(&self, ids: &[i64], owner: OwnerToken) {
        let mut table = self.table();
        table.leases.remove(&owner);
        match table.freeing.get_mut(&owner) {
            Some(unsent) => unsent.freed = Some(ids.to_vec()),
            None => table.forget(ids, owner),
        }
        drop(table);
        self.answered.notify_waiters();
    }

    /// Nothing is held, nor may be.
    pub(super) fn is_empty(&self) -> bool {
        self.table().by_id.is_empty()
    }

    pub(super) fn is_ended(&self) -> bool {
        self.table().ended.is_some()
    }

    /// Has `lease` told when the session ends; says why it is lost if it has.
    pub(super) fn tell(&self, owner: OwnerToken, lease: &Weak<dyn Losable>) -> Option<LossReason> {
        let mut table = self.table();
        if table.ended.is_none() {
            table.leases.insert(owner, Weak::clone(lease));
        }
        table.ended
    }

    /// Whose leases are told.
    pub(super) fn owners(&self) -> Vec<OwnerToken> {
        self.table().leases.keys().copied().collect()
    }

    /// Tells the lease of `owner` that it is broken: it then gives back what it has.
    pub(super) fn break_lease(&self, owner: OwnerToken) {
        let lease = self.table().leases.remove(&owner);
        if let Some(lease) = lease.and_then(|lease| lease.upgrade()) {
            lease.gone(LossReason::Taken);
        }
    }

    /// The session is over: tells the leases. The first reason counts.
    pub(super) fn end(&self, why: LossReason) {
        let leases = {
            let mut table = self.table();
            table.ended.get_or_insert(why);
            std::mem::take(&mut table.leases)
        };
        self.answered.notify_waiters();
        for lease in leases.values().filter_map(Weak::upgrade) {
            lease.gone(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn owners() -> (OwnerToken, OwnerToken) {
        (OwnerToken::draw().unwrap(), OwnerToken::draw().unwrap())
    }

    #[test]
    fn one_id_is_held_once_in_this_process() {
        let (locks, (one, two)) = (Locks::default(), owners());
        let reserve = |id, key, owner| locks.reserve(&[(id, key)], Mode::Exclusive, owner, PATIENCE);
        assert!(matches!(reserve(7, "a", one), Ok(Reserved::Take)));
        assert!(matches!(reserve(7, "a", two), Err(Attempt::Busy { .. })));
        // Another name on the same id: an error, as a wait for oneself would have no end.
        let Err(Attempt::Refused(error)) = reserve(7, "b", two) else { panic!("not refused") };
        assert_eq!(error.kind(), ErrorKind::Conflict);
        locks.forget(&[7], two);
        assert!(reserve(7, "a", two).is_err());
        locks.forget(&[7], one);
        assert!(reserve(7, "b", two).is_ok());
        locks.end(LossReason::Taken);
        assert!(matches!(reserve(8, "c", one), Err(Attempt::Refused(_))));
    }

    #[test]
    fn a_server_that_does_not_answer_is_out_of_reach() {
        let (locks, (one, two)) = (Locks::default(), owners());
        let reserve = |owner| locks.reserve(&[(7, "a")], Mode::Exclusive, owner, Duration::ZERO);
        assert!(matches!(reserve(one), Ok(Reserved::Take)));
        assert!(matches!(reserve(two), Err(Attempt::Refused(error)) if error.kind() == ErrorKind::Unavailable));
        locks.taken(&[7], None, one);
        assert!(matches!(reserve(two), Err(Attempt::Busy { .. })));
        locks.begin_freeing(&[7], one);
        assert!(matches!(reserve(two), Err(Attempt::Refused(error)) if error.kind() == ErrorKind::Unavailable));
    }

    #[test]
    fn all_are_reserved_or_none() {
        let (locks, (one, two)) = (Locks::default(), owners());
        assert!(locks.reserve(&[(2, "b")], Mode::Exclusive, one, PATIENCE).is_ok());
        assert!(locks.reserve(&[(1, "a"), (2, "b")], Mode::Exclusive, two, PATIENCE).is_err());
        assert!(locks.reserve(&[(1, "a")], Mode::Exclusive, two, PATIENCE).is_ok());
    }

    #[test]
    fn what_is_shared_is_taken_by_the_first_and_freed_by_the_last() {
        let (locks, (one, two)) = (Locks::default(), owners());
        let share = |owner| locks.reserve(&[(7, "a")], Mode::Shared, owner, PATIENCE);
        assert!(matches!(share(one), Ok(Reserved::Take)));
        // Not before the server has given it.
        assert!(matches!(share(two), Err(Attempt::Busy { contended: true, .. })));
        locks.taken(&[7], None, one);
        assert!(matches!(share(two), Ok(Reserved::Join)));
        let other = Mode::Permit { of: 2 };
        assert!(matches!(locks.reserve(&[(7, "a")], other, two, PATIENCE), Err(Attempt::Busy { foreign: true, .. })));
        assert_eq!(locks.begin_freeing(&[7], one).what, ToFree::default());
        locks.forget(&[7], one);
        let last = ToFree { shared: vec![7], ..ToFree::default() };
        assert_eq!(locks.begin_freeing(&[7], two).what, last);
        assert!(locks.begin_freeing(&[7], two).what.again);
        // Not while it is being freed.
        assert!(matches!(share(one), Err(Attempt::Busy { contended: true, .. })));
        locks.forget(&[7], two);
        assert!(matches!(share(one), Ok(Reserved::Take)));
    }

    #[test]
    fn what_is_about_to_be_freed_is_nobody_elses() {
        let (locks, (one, two)) = (Locks::default(), owners());
        let reserve = |owner| locks.reserve(&[(7, "a")], Mode::Exclusive, owner, PATIENCE);
        assert!(reserve(one).is_ok());
        locks.taken(&[7], None, one);
        let (sent, unsent) = (locks.begin_freeing(&[7], one), locks.begin_freeing(&[7], one));
        drop(sent);
        locks.forget(&[7], one);
        assert!(reserve(two).is_err());
        drop(unsent);
        assert!(reserve(two).is_ok());
    }

    #[test]
    fn a_permit_has_its_slot_alone() {
        let (locks, (one, two)) = (Locks::default(), owners());
        let reserve = |slots: &[i64], owner| match locks.reserve_slots(slots, owner) {
            Err(Attempt::Busy { contended, .. }) => Err(contended),
            reserved => Ok(reserved.unwrap()),
        };
        assert_eq!(reserve(&[1, 2, 3], one), Ok(vec![1, 2, 3]));
        assert_eq!(reserve(&[1, 2, 3], two), Err(true));
        locks.taken(&[], Some(2), one);
        assert_eq!(reserve(&[2], two), Err(false));
        assert_eq!(reserve(&[1, 2, 3], two), Ok(vec![1, 3]));
        locks.free_slots(two);
        assert_eq!(locks.begin_freeing(&[], one).what.slots, [2]);
        locks.forget(&[], one);
        assert_eq!(reserve(&[1, 2], two), Ok(vec![1, 2]));
    }
}
