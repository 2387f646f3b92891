//! From a URL to a manager.

use std::{ffi::c_char, time::Duration};

use arc_swap::ArcSwap;
use engine::{Connect, Result, host};

use crate::{
    abi::{polylock_connect_options, polylock_error, polylock_manager, polylock_status},
    boundary,
    object::{discard, find, find_or_none, keep},
    pointer::{Out, Text, Texts},
};

/// The options of a manager. Without a lock, as those of acquisitions.
#[derive(Default)]
pub(crate) struct ConnectSettings(ArcSwap<Chosen>);

#[derive(Clone, Default)]
struct Chosen {
    prefix: Option<String>,
    drift_factor: Option<f64>,
    node_timeout: Option<Duration>,
}

impl ConnectSettings {
    fn apply(&self, mut connect: Connect) -> Connect {
        let chosen = self.0.load();
        if let Some(prefix) = &chosen.prefix {
            connect = connect.prefix(prefix);
        }
        if let Some(factor) = chosen.drift_factor {
            connect = connect.drift_factor(factor);
        }
        if let Some(timeout) = chosen.node_timeout {
            connect = connect.node_timeout(timeout);
        }
        connect
    }
}

/// Sets one option to what `value` makes of C's argument.
fn set<V: Clone>(
    options: polylock_connect_options,
    err: *mut polylock_error,
    value: impl FnOnce() -> Result<V>,
    assign: impl Fn(&mut Chosen, V),
) -> polylock_status {
    boundary::status(err, || {
        let (settings, value) = (find::<ConnectSettings>(options)?, value()?);
        settings.0.rcu(|chosen| {
            let mut chosen = Chosen::clone(chosen);
            assign(&mut chosen, value.clone());
            chosen
        });
        Ok(())
    })
}

fn connect(connect: Connect, options: polylock_connect_options, manager: *mut polylock_manager) -> Result<()> {
    let place = manager.required("manager")?;
    let connect = match find_or_none::<ConnectSettings>(options)? {
        Some(settings) => settings.apply(connect),
        None => connect,
    };
    polylock_fork_mark::give();
    place.put(keep(connect.lazy()?)?);
    Ok(())
}

/// Makes a manager of the locks at `url`. Opens no connection and starts no thread: a server that cannot be
/// reached, or a wrong password, shows at the first use.
///
/// @param url "memory:" (a store of its own each time), "memory:NAME", "file:///var/lock/app", "redis://user:password@host:6379/0", "rediss://…",
///        "redis+unix:///path", "redis+cluster://…", "redis+sentinel://…", "postgres://user:password@host/database",
///        "zookeeper://host1,host2,host3/path".
/// @param options 0 for the defaults. Is only read, and may be freed afterwards.
/// @param manager out: the manager.
/// @param err out, may be NULL: why it failed.
/// @return POLYLOCK_ERR_INVALID_ARGUMENT ("url" or the option), POLYLOCK_ERR_UNSUPPORTED for a directory that locks
///         cannot be kept in, POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect(
    url: *const c_char,
    options: polylock_connect_options,
    manager: *mut polylock_manager,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || connect(engine::connect(url.text("url")?), options, manager))
}

/// As polylock_connect, with the length of the URL in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect_n(
    url: *const c_char,
    url_length: usize,
    options: polylock_connect_options,
    manager: *mut polylock_manager,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || connect(engine::connect(url.text_n(url_length, "url")?), options, manager))
}

/// As polylock_connect, for locks that are kept on several independent Redis servers at once (Redlock).
///
/// @param urls `count` URLs.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect_many(
    urls: *const *const c_char,
    count: usize,
    options: polylock_connect_options,
    manager: *mut polylock_manager,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || connect(engine::connect(urls.texts(count, "url")?), options, manager))
}

/// Makes options for polylock_connect, all at their defaults.
///
/// @return 0 if there are too many handles.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect_options_new() -> polylock_connect_options {
    boundary::value(0, || keep(ConnectSettings::default()).ok())
}

/// Text that is put before each resource's name to make the Redis key. Default: nothing, so that other libraries'
/// locks on the same name exclude ours and are excluded by ours. At most 256 bytes.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect_options_set_prefix(
    options: polylock_connect_options,
    prefix: *const c_char,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(prefix.text("prefix")?.to_owned()), |chosen, prefix| chosen.prefix = Some(prefix))
}

/// How far clocks may run apart, as a part of the ttl: 0 to 0.5, default 0.01. Looked at by polylock_connect.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect_options_set_drift_factor(
    options: polylock_connect_options,
    factor: f64,
    err: *mut polylock_error,
) -> polylock_status {
    set(options, err, || Ok(factor), |chosen, factor| chosen.drift_factor = Some(factor))
}

/// How long one server may take to answer, in milliseconds. Default: a third of the ttl, between 50 ms and 2 s; with
/// several servers a fifth of the ttl, between 50 ms and 500 ms.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect_options_set_node_timeout_ms(
    options: polylock_connect_options,
    timeout_ms: f64,
    err: *mut polylock_error,
) -> polylock_status {
    set(
        options,
        err,
        || host::duration("node_timeout", timeout_ms, Duration::from_millis(1)),
        |chosen, timeout| chosen.node_timeout = Some(timeout),
    )
}

/// Ends the options. 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_connect_options_free(options: polylock_connect_options) -> polylock_status {
    boundary::bare_status(|| discard::<ConnectSettings>(options))
}
