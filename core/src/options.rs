//! What a caller can ask for: of one acquisition, and of a manager.

use std::{sync::Arc, time::Duration};

use crate::{Error, Result, mutant::mutant};

/// The longest time that any option takes: 2^53 ms, what a double counts exactly.
const LONGEST: Duration = Duration::from_millis(1 << 53);

/// How to acquire: ttl, wait and renewal.
///
/// ```
/// use std::time::Duration;
/// let options = polylock::Acquire::ttl(Duration::from_secs(10)).wait(Duration::from_secs(5));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Acquire {
    pub(crate) ttl: Duration,
    pub(crate) wait: Wait,
    pub(crate) auto_extend: bool,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) fair: bool,
    pub(crate) thorough: bool,
    pub(crate) gives_back: bool,
    pub(crate) retried_every: Option<Duration>,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) template: Option<Arc<str>>,
}

/// How long acquiring may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// One try.
    No,
    For(Duration),
    /// As long as somebody holds it; a backend that is out of reach ends it all the same, see [`crate::acquire`].
    Forever,
}

/// How often, and for how long, a backend that is out of reach is tried again before acquiring fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// At least so many times.
    pub(crate) retries: u32,
    /// The same, where it says nothing and the lock is waited for.
    pub(crate) silences: u32,
    /// And for at least so long after the first failure.
    pub(crate) pause: Duration,
}

impl Default for Acquire {
    /// A ttl of 30 s, renewed in the background; waits for as long as it takes.
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            wait: Wait::Forever,
            auto_extend: true,
            max_hold: None,
            fair: false,
            thorough: false,
            gives_back: false,
            retried_every: None,
            label: None,
            template: None,
        }
    }
}

impl Acquire {
    /// The default with another ttl: how long the lease lasts without renewal, and so the time after which a dead
    /// holder frees it. From 3 ms (a lease needs 2 ms and 1 % for clock drift) to 2^53 ms.
    pub fn ttl(ttl: Duration) -> Self {
        Self { ttl, ..Self::default() }
    }

    /// Waits at most this long; zero tries once.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = if wait.is_zero() { Wait::No } else { Wait::For(wait) };
        self
    }

    /// Tries once.
    pub fn no_wait(mut self) -> Self {
        self.wait = Wait::No;
        self
    }

    /// Waits for as long as somebody holds it (the default).
    pub fn wait_forever(mut self) -> Self {
        self.wait = Wait::Forever;
        self
    }

    /// Whether the engine renews the lease until it is released (the default).
    pub fn auto_extend(mut self, auto_extend: bool) -> Self {
        self.auto_extend = auto_extend;
        self
    }

    /// No renewal begins later than this after the grant, so that a hung holder cannot hold for ever: the lease
    /// then ends within one ttl. Default: no bound.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// Whether those who ask for this are served in the order in which they came, also those of different processes.
    /// They let nobody pass who came later and asks for it as well; who does not ask for it, or has another library, may
    /// still come first. A waiter that died is passed over a second later. For exclusive locks on one resource, where
    /// [`Capabilities::fair`](crate::Capabilities::fair) says so; else `Unsupported`. Default: no.
    pub fn fair(mut self, fair: bool) -> Self {
        self.fair = fair;
        self
    }

    /// Has what a majority of several servers decided about the lock, until it is released, wait a moment for the others, so
    /// that a program which looks at each of its servers finds there what it was told. For the drop-in for redlock 4, whose users do.
    #[doc(hidden)]
    pub fn thorough(mut self, thorough: bool) -> Self {
        self.thorough = thorough;
        self
    }

    /// Has a try that fails without waiting give back what a minority of several servers granted before it is told of, if they are
    /// there: whoever looks at each of them finds nothing. For the drop-in for redlock, which does so.
    #[doc(hidden)]
    pub fn gives_back(mut self, gives_back: bool) -> Self {
        self.gives_back = gives_back;
        self
    }

    /// For a caller who tries again after each failure, `every` so often: who waits looks at least as often, for holders that wake
    /// nobody, and a backend that is out of reach ends the wait at once. For the drop-in for redlock, which tells of each failure.
    #[doc(hidden)]
    pub fn retried(mut self, every: Duration) -> Self {
        self.retried_every = Some(every);
        self
    }

    /// What [`Holder::label`](crate::Holder::label) will say. At most 256 bytes.
    pub fn label(mut self, label: &str) -> Self {
        self.label = Some(label.into());
        self
    }

    /// What metrics count it under, as in `invoice:{id}`: one for each kind of resource, never the resource's own
    /// name. At most 256 bytes; a manager tells 200 of them apart. Default: none.
    pub fn template(mut self, template: &str) -> Self {
        self.template = Some(template.into());
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_ttl(self.ttl)?;
        if let Wait::For(wait) = self.wait {
            check_longest("wait", wait)?;
        }
        if let Some(max_hold) = self.max_hold {
            check_longest("max_hold", max_hold)?;
            if max_hold.is_zero() {
                return Err(Error::invalid("max_hold", "must be positive"));
            }
        }
        if self.label.as_ref().is_some_and(|label| label.len() > 256 || label.contains("\0")) {
            return Err(Error::invalid("label", "must have at most 256 bytes and no NUL"));
        }
        if self.template.as_ref().is_some_and(|template| template.is_empty() || template.len() > 256) {
            return Err(Error::invalid("template", "must have 1 to 256 bytes"));
        }
        Ok(())
    }
}

pub(crate) fn check_ttl(ttl: Duration) -> Result<()> {
    if ttl < Duration::from_millis(3) && !mutant!("D30") {
        let ms = ttl.as_nanos() as f64 / 1e6;
        return Err(Error::invalid("ttl", format!("must be at least 3 ms, not {ms} ms")));
    }
    check_longest("ttl", ttl)
}

fn check_longest(argument: &'static str, value: Duration) -> Result<()> {
    if value > LONGEST {
        return Err(Error::invalid(argument, "must be at most 2^53 ms"));
    }
    Ok(())
}

/// A duration from a number, as other languages give it: `value` times `unit`.
///
/// # Errors
/// `InvalidArgument` naming `argument` if it is negative, not a number, or over 2^53 ms.
pub fn duration(argument: &'static str, value: f64, unit: Duration) -> Result<Duration> {
    if value.is_nan() {
        return Err(Error::invalid(argument, "must be a number"));
    }
    if value < 0.0 {
        return Err(Error::invalid(argument, format!("must not be negative: {value}")));
    }
    let seconds = value * unit.as_secs_f64();
    if seconds > LONGEST.as_secs_f64() {
        return Err(Error::invalid(argument, "must be at most 2^53 ms"));
    }
    Ok(Duration::from_secs_f64(seconds).min(LONGEST)) // which a fraction of seconds may round up from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_argument_that_is_wrong() {
        let argument = |options: Acquire| options.check().unwrap_err().argument().map(str::to_owned);
        let second = Duration::from_secs(1);
        assert!(Acquire::ttl(second).wait(Duration::ZERO).check().is_ok());
        for ttl in [Duration::ZERO, Duration::from_millis(2), Duration::MAX] {
            assert_eq!(argument(Acquire::ttl(ttl)).as_deref(), Some("ttl"), "{ttl:?}");
        }
        for (ttl, said) in [(Duration::ZERO, "0 ms"), (Duration::from_micros(2900), "2.9 ms")] {
            assert_eq!(check_ttl(ttl).unwrap_err().to_string(), format!("ttl must be at least 3 ms, not {said}"));
        }
        assert_eq!(argument(Acquire::ttl(second).wait(Duration::MAX)).as_deref(), Some("wait"));
        assert_eq!(argument(Acquire::ttl(second).max_hold(Duration::ZERO)).as_deref(), Some("max_hold"));
        assert_eq!(argument(Acquire::ttl(second).template("")).as_deref(), Some("template"));
        assert_eq!(argument(Acquire::ttl(second).label(&"x".repeat(257))).as_deref(), Some("label"));
    }

    #[test]
    fn takes_numbers_from_other_languages() {
        let ms = Duration::from_millis(1);
        assert_eq!(duration("ttl", 1500.0, ms).unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("wait", 0.0, ms).unwrap(), Duration::ZERO);
        assert_eq!(duration("ttl", 9_007_199_254_740_992.0, ms).unwrap(), LONGEST);
        for bad in [f64::NAN, -1.0, f64::NEG_INFINITY, f64::INFINITY, 9.1e15] {
            assert_eq!(duration("ttl", bad, ms).unwrap_err().argument(), Some("ttl"), "{bad}");
        }
    }
}
