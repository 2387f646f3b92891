//! How to acquire.

use std::{ffi::c_char, time::Duration};

use arc_swap::ArcSwap;
use engine::{Acquire, Error, Mode, Result, Target, host};

use crate::{
    abi::{polylock_error, polylock_options, polylock_status},
    boundary,
    object::{discard, find, find_or_none, keep},
    pointer::Text,
};

/// The options of acquisitions. Without a lock, which another thread could hold during a fork: they are usable in
/// the child.
#[derive(Default)]
pub(crate) struct Settings(ArcSwap<Chosen>);

#[derive(Clone, Default)]
struct Chosen {
    mode: Option<Mode>,
    ttl: Option<Duration>,
    wait: Wait,
    no_auto_extend: bool,
    max_hold: Option<Duration>,
    label: Option<String>,
    fair: bool,
}

#[derive(Clone, Copy, Default)]
enum Wait {
    No,
    For(Duration),
    #[default]
    Forever,
}

impl Settings {
    fn to_acquire(&self) -> Acquire {
        let chosen = self.0.load();
        let mut acquire = chosen
            .ttl
            .map_or_else(Acquire::default, Acquire::ttl)
            .auto_extend(!chosen.no_auto_extend)
            .fair(chosen.fair);
        acquire = match chosen.wait {
            Wait::No => acquire.no_wait(),
            Wait::For(wait) => acquire.wait(wait),
            Wait::Forever => acquire.wait_forever(),
        };
        if let Some(max_hold) = chosen.max_hold {
            acquire = acquire.max_hold(max_hold);
        }
        match &chosen.label {
            Some(label) => acquire.label(label),
            None => acquire,
        }
    }
}

/// What to acquire, and how, as `options` say; the defaults for 0.
///
/// # Errors
/// `InvalidHandle`; `InvalidArgument` naming `resources` if several are to be held otherwise than exclusively.
pub(crate) fn request(options: polylock_options, names: Names) -> Result<(Target, Acquire)> {
    let settings = find_or_none::<Settings>(options)?;
    let mode = settings.as_ref().and_then(|settings| settings.0.load().mode).unwrap_or(Mode::Exclusive);
    let target = match (mode, names) {
        (Mode::Exclusive, Names::One(name)) => name.into(),
        (Mode::Exclusive, Names::All(names)) => names.into(),
        (Mode::Shared, Names::One(name)) => Target::shared(&name),
        (Mode::Permit { of }, Names::One(name)) => Target::permit(&name, of),
        (Mode::Shared | Mode::Permit { .. }, Names::All(_)) => {
            return Err(Error::invalid("resources", "are several, which can only be held exclusively"));
        }
    };
    Ok((target, settings.map_or_else(Acquire::default, |settings| settings.to_acquire())))
}

/// The resources of one acquisition, as C named them.
pub(crate) enum Names {
    One(String),
    All(Vec<String>),
}

/// Sets one option to what `value` makes of C's argument.
fn set<V: Clone>(
    options: polylock_options,
    err: *mut polylock_error,
    value: impl FnOnce() -> Result<V>,
    assign: impl Fn(&mut Chosen, V),
) -> polylock_status {
    boundary::status(err, || {
        let (settings, value) = (find::<Settings>(options)?, value()?);
        settings.0.rcu(|chosen| {
            let mut chosen = Chosen::clone(chosen);
            assign(&mut chosen, value.clone());
            chosen
        });
        Ok(())
    })
}

fn milliseconds(argument: &'static str, value: f64) -> Result<Duration> {
    host::duration(argument, value, Duration::from_millis(1))
}

/// Makes options for acquiring, all at their defaults. May be used for any number of acquisitions, which read them
/// when they begin.
///
/// @return 0 if there are too many handles.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_new() -> polylock_options {
    boundary::value(0, || keep(Settings::default()).ok())
}

/// How long the lease lasts without renewal, in milliseconds: the time after which a dead holder frees it. From 3
/// to 2^53; default 30,000.
///
/// @return POLYLOCK_ERR_INVALID_ARGUMENT ("ttl") if it is negative, not a number or too large; a ttl that is too
///         small shows when acquiring.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_ttl_ms(
    options: polylock_options,
    ttl_ms: f64,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || milliseconds("ttl", ttl_ms), |chosen, ttl| chosen.ttl = Some(ttl))
}

/// Waits at most this many milliseconds for a resource that is in use.
///
/// @return POLYLOCK_ERR_INVALID_ARGUMENT ("wait") if it is negative, not a number or over 2^53.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_wait_ms(
    options: polylock_options,
    wait_ms: f64,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || milliseconds("wait", wait_ms).map(Wait::For), |chosen, wait| chosen.wait = wait)
}

/// Waits for as long as somebody holds the resource (the default). A backend that stays out of reach for 30 s ends
/// it all the same.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_wait_forever(
    options: polylock_options,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(Wait::Forever), |chosen, wait| chosen.wait = wait)
}

/// Tries once.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_no_wait(
    options: polylock_options,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(Wait::No), |chosen, wait| chosen.wait = wait)
}

/// Whether the lease is renewed in the background until it is released (the default).
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_auto_extend(
    options: polylock_options,
    auto_extend: bool,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(!auto_extend), |chosen, never| chosen.no_auto_extend = never)
}

/// No renewal begins later than this many milliseconds after the grant, so that a hung holder cannot hold for ever:
/// the lease then ends within one ttl. Default: no bound.
///
/// @return POLYLOCK_ERR_INVALID_ARGUMENT ("max_hold") if it is negative, not a number or over 2^53; 0 shows when
///         acquiring.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_max_hold_ms(
    options: polylock_options,
    max_hold_ms: f64,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || milliseconds("max_hold", max_hold_ms), |chosen, max_hold| chosen.max_hold = Some(max_hold))
}

/// What polylock_holder_label will say of the lease. UTF-8, at most 256 bytes; a longer one shows when acquiring.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_label(
    options: polylock_options,
    label: *const c_char,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(label.text("label")?.to_owned()), |chosen, label| chosen.label = Some(label))
}

/// Whether those who ask for this are served in the order in which they came, also those of other processes. Whoever
/// does not ask for it may still come first. A waiter that died is passed over a second later. Default: false.
///
/// For exclusive locks on one resource, where the backend can (POLYLOCK_CAN_SERVE_IN_ORDER); else acquiring gives
/// POLYLOCK_ERR_UNSUPPORTED.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_fair(
    options: polylock_options,
    fair: bool,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(fair), |chosen, fair| chosen.fair = fair)
}

/// Holds the resource together with others that hold it shared; nobody holds it exclusively meanwhile.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_shared(
    options: polylock_options,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(Mode::Shared), |chosen, mode| chosen.mode = Some(mode))
}

/// Takes one of `of` permits: the resource is a semaphore, of which so many are held at a time. All of its users must
/// name the same number.
///
/// @param of 1 to 65,535; another number shows when acquiring, as POLYLOCK_ERR_INVALID_ARGUMENT ("of").
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_permit(
    options: polylock_options,
    of: u32,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(Mode::Permit { of }), |chosen, mode| chosen.mode = Some(mode))
}

/// Holds the resource alone (the default).
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_set_exclusive(
    options: polylock_options,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(Mode::Exclusive), |chosen, mode| chosen.mode = Some(mode))
}

/// Ends the options. 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_options_free(options: polylock_options) -> polylock_status {
    boundary::bare_status(|| discard::<Settings>(options))
}
