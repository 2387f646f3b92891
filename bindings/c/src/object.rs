//! What handles stand for.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use engine::{Error, ErrorKind, Lease, LockManager, Result, host};

use crate::{
    connect::ConnectSettings,
    error::Failure,
    future::Future,
    holder::HolderText,
    observe::Subscription,
    options::Settings,
    queue::Queue,
    table::{Pin, Table, epoch, epoch_of, kind_of},
};

static OBJECTS: Table<Object> = Table::new(dispose);

/// Anything that a handle can stand for.
pub(crate) enum Object {
    Manager(LockManager),
    Lease(Arc<Lease>),
    Failure(Failure),
    Settings(Settings),
    ConnectSettings(ConnectSettings),
    HolderText(HolderText),
    Future(Future),
    Queue(Arc<Queue>),
    Subscription(Subscription),
}

/// One type that a handle can stand for.
pub(crate) trait Kept: Sized {
    /// Its number in handles; stable, from 1 to 15.
    const KIND: u8;
    /// What a message calls it: the parameter's name in the header.
    const NAME: &'static str;
    fn into_object(self) -> Object;
    fn of(object: &Object) -> Option<&Self>;
}

macro_rules! kept {
    ($($kind:literal $name:literal $variant:ident($type:ty),)*) => {$(
        impl Kept for $type {
            const KIND: u8 = $kind;
            const NAME: &'static str = $name;

            fn into_object(self) -> Object {
                Object::$variant(self)
            }

            fn of(object: &Object) -> Option<&Self> {
                match object {
                    Object::$variant(kept) => Some(kept),
                    _ => None,
                }
            }
        }
    )*};
}

kept! {
    1 "manager" Manager(LockManager),
    2 "lease" Lease(Arc<Lease>),
    3 "error" Failure(Failure),
    4 "options" Settings(Settings),
    5 "options" ConnectSettings(ConnectSettings),
    6 "holder" HolderText(HolderText),
    7 "future" Future(Future),
    8 "queue" Queue(Arc<Queue>),
    9 "subscription" Subscription(Subscription),
}

/// Gives `value` a handle.
///
/// # Errors
/// `Internal` if there are 8 million handles already.
pub(crate) fn keep<T: Kept>(value: T) -> Result<u64> {
    let handle = OBJECTS.insert(T::KIND, epoch(host::generation()), value.into_object());
    handle.ok_or_else(|| Error::new(ErrorKind::Internal, "too many handles are in use"))
}

/// What `handle` stands for; lives on while this is kept, even if the handle is freed meanwhile.
///
/// # Errors
/// `InvalidHandle`.
pub(crate) fn find<T: Kept>(handle: u64) -> Result<Found<T>> {
    match OBJECTS.pin(handle) {
        Some(pin) if T::of(&pin).is_some() => Ok(Found { pin, kept: PhantomData }),
        _ => Err(invalid_handle::<T>(handle)),
    }
}

/// As [`find`], where 0 stands for nothing.
///
/// # Errors
/// `InvalidHandle`.
pub(crate) fn find_or_none<T: Kept>(handle: u64) -> Result<Option<Found<T>>> {
    if handle == 0 { Ok(None) } else { find(handle).map(Some) }
}

/// Ends a handle; 0 is no handle, and ending it does nothing.
///
/// # Errors
/// `InvalidHandle`.
pub(crate) fn discard<T: Kept>(handle: u64) -> Result<()> {
    let ended = handle == 0 || (kind_of(handle) == T::KIND && OBJECTS.remove(handle));
    if ended { Ok(()) } else { Err(invalid_handle::<T>(handle)) }
}

/// Whether this process gave the handle out.
///
/// # Errors
/// `Forked`.
pub(crate) fn check_process(handle: u64) -> Result<()> {
    if epoch_of(handle) == epoch(host::generation()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Forked, "this object belongs to the parent process; make a new one after fork"))
}

fn invalid_handle<T: Kept>(handle: u64) -> Error {
    let why = match handle {
        0 => "is 0, which is no handle".to_owned(),
        _ if kind_of(handle) != T::KIND => format!("is not a handle of this kind: {handle:#x}"),
        _ => format!("is not a live handle (freed, of another process, or never given out): {handle:#x}"),
    };
    Error::new(ErrorKind::InvalidHandle, format!("{} {why}", T::NAME))
}

/// Drops what a handle stood for, unless it is of the process that this one was forked from: its threads and
/// event queues are not here to be taken apart. (Managers and leases see to that themselves.)
fn dispose(handle: u64, object: Object) {
    let outlives_fork = !matches!(object, Object::Future(_) | Object::Queue(_) | Object::Subscription(_));
    if !outlives_fork && epoch_of(handle) != epoch(host::generation()) {
        std::mem::forget(object);
    }
}

/// An object in use.
pub(crate) struct Found<T> {
    pin: Pin<'static, Object>,
    kept: PhantomData<T>,
}

impl<T: Kept> Deref for Found<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match T::of(&self.pin) {
            Some(kept) => kept,
            None => unreachable!("looked at by find, and an object never changes its kind"),
        }
    }
}
