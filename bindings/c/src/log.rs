//! The engine's log, for C.
//!
//! The engine tells its log to whoever subscribes in its process; here that is one subscriber, which hands messages to
//! C's callback on the callback thread. What C wants is looked up without a lock, also in the child of a fork, where the
//! parent's callback is not called.
//!
//! Nor may changing it wait for a lock, which another thread of the parent may have held during the fork. The tracing
//! library takes one when somebody subscribes, and whenever there are several who do. So this subscribes once.

use std::{
    ffi::{CString, c_int, c_void},
    fmt::{Debug, Write},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use engine::{Error, ErrorKind, Result, host};
use tracing_core::{
    Dispatch, Event, Interest, Level, LevelFilter, Metadata, Subscriber,
    callsite::rebuild_interest_cache,
    dispatcher::{has_been_set, set_global_default},
    field::{Field, Visit},
    span,
};

use crate::{
    abi::{polylock_error, polylock_finalizer, polylock_log_callback, polylock_log_level, polylock_status},
    boundary,
    callback::{self, Userdata},
    dispatcher,
    error::c_string,
};

/// Messages that may wait for the callback thread; more are dropped.
const MOST: usize = 10_000;

/// Who wants to hear what.
struct Sink {
    generation: u32,
    level: LevelFilter,
    callback: polylock_log_callback,
    userdata: Arc<Userdata>,
    waiting: Arc<AtomicUsize>,
}

static SINK: ArcSwapOption<Sink> = ArcSwapOption::const_empty();

fn sink() -> Option<Arc<Sink>> {
    SINK.load_full().filter(|sink| sink.generation == host::generation())
}

/// Replaces who hears the log.
fn put(sink: Option<Sink>) {
    drop(SINK.swap(sink.map(Arc::new)));
    // The level is noted in every place that logs. Who notes last must have looked at the last sink.
    loop {
        let noted = SINK.load_full();
        rebuild_interest_cache();
        if noted.as_ref().map(Arc::as_ptr) == SINK.load_full().as_ref().map(Arc::as_ptr) {
            return;
        }
    }
}

/// The process that subscribes or has, as its generation plus 1; 0 for none.
static SUBSCRIBER: AtomicU32 = AtomicU32::new(0);

/// Subscribes to the engine's log, once for this process and all that are forked from it.
///
/// # Errors
/// `Internal` in the child of a fork that came while another thread did this: its lock cannot be had any more.
fn subscribe() -> Result<()> {
    let own = host::generation().wrapping_add(1);
    match SUBSCRIBER.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            set_global_default(Dispatch::new(Log)).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
        }
        Err(by) if by != own && !has_been_set() => {
            let why = "there is no log here: this process was forked during its parent's first polylock_set_log";
            Err(Error::new(ErrorKind::Internal, why))
        }
        Err(_) => Ok(()),
    }
}

/// The level that C means by a number.
fn level(number: c_int) -> Result<LevelFilter> {
    Ok(match number {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        5 => LevelFilter::TRACE,
        _ => return Err(Error::invalid("level", format!("must be one of POLYLOCK_LOG_…, not {number}"))),
    })
}

fn number(level: Level) -> polylock_log_level {
    match level {
        Level::ERROR => polylock_log_level::POLYLOCK_LOG_ERROR,
        Level::WARN => polylock_log_level::POLYLOCK_LOG_WARN,
        Level::INFO => polylock_log_level::POLYLOCK_LOG_INFO,
        Level::DEBUG => polylock_log_level::POLYLOCK_LOG_DEBUG,
        Level::TRACE => polylock_log_level::POLYLOCK_LOG_TRACE,
    }
}

struct Log;

impl Subscriber for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.target().starts_with("polylock") { Interest::sometimes() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(sink().map_or(LevelFilter::OFF, |sink| sink.level))
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("polylock") && sink().is_some_and(|sink| *metadata.level() <= sink.level)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        // Not the one, perhaps, that was asked whether it wants this.
        let Some(sink) = sink().filter(|sink| *event.metadata().level() <= sink.level) else { return };
        if sink.waiting.fetch_add(1, Ordering::Relaxed) >= MOST {
            sink.waiting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        sink.tell(number(*event.metadata().level()), c_string(&line.text()));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Sink {
    fn tell(&self, level: polylock_log_level, message: CString) {
        let waiting = Arc::clone(&self.waiting);
        callback::log(self.callback, level, message, Arc::clone(&self.userdata), move || {
            waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// An event as one line: the message, then `name=value` of each field.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn text(&self) -> String {
        format!("{}{}", self.message, self.fields)
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// Has `callback` called for each message of the library's log, on its callback thread, in the order in which
/// they were written. Replaces the callback that was set before. When 10,000 messages wait for the callback, further ones
/// are dropped. Messages never hold a password.
///
/// @param level which messages: POLYLOCK_LOG_WARN and what is worse, for example. POLYLOCK_LOG_OFF ends it.
/// @param callback may be NULL with POLYLOCK_LOG_OFF.
/// @param userdata handed to `callback`. Has to stay valid until `finalizer` is called.
/// @param finalizer called once with `userdata` when it is not used any more: after it was replaced, or if this function
///        fails. May be NULL.
/// @return POLYLOCK_ERR_INVALID_ARGUMENT ("level", "callback"), POLYLOCK_ERR_INTERNAL if there is no thread to be had, or
///         in the child of a fork that came during its parent's first call of this.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_set_log(
    level: c_int,
    callback: polylock_log_callback,
    userdata: *mut c_void,
    finalizer: polylock_finalizer,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let userdata = Arc::new(Userdata::new(userdata, finalizer));
        let level = self::level(level)?;
        if level == LevelFilter::OFF {
            put(None);
            return Ok(());
        }
        if callback.is_none() {
            return Err(Error::invalid("callback", "must not be NULL"));
        }
        dispatcher::start()?;
        subscribe()?;
        let generation = host::generation();
        put(Some(Sink { generation, level, callback, userdata, waiting: Arc::default() }));
        Ok(())
    })
}
