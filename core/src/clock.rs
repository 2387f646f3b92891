//! The one clock of the engine.
//!
//! A lease's deadline must also pass while the machine sleeps. `std::time::Instant` stands still during
//! suspend on Linux, so the engine reads `CLOCK_BOOTTIME` there; elsewhere `CLOCK_MONOTONIC` is the closest
//! thing (on macOS it counts sleep).

use std::time::{Duration, SystemTime};

#[cfg(target_os = "linux")]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

/// A point in time on a clock that also runs while the machine sleeps and that nobody can set.
///
/// Meaningful within one boot of one machine only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// Reads the clock.
    pub fn now() -> Self {
        #[cfg(test)]
        if let Some(now) = crate::simulation::now() {
            return now;
        }
        let now = rustix::time::clock_gettime(CLOCK);
        // The clock counts from boot, so neither part is negative.
        Self(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// The point this long after the clock's origin (boot).
    pub(crate) const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// A point given by the simulator.
    #[cfg(test)]
    pub(crate) fn at(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// Time since the clock's origin (boot).
    pub fn since_boot(self) -> Duration {
        self.0
    }

    /// The point `delay` later; the end of time if that cannot be represented.
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(delay))
    }

    /// The point `delay` earlier; the clock's origin if that lies before it.
    pub fn before(self, delay: Duration) -> Self {
        Self(self.0.saturating_sub(delay))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This point on the wall clock as it is set now. For display: the wall clock may be set at any time.
    pub fn to_system_time(self) -> SystemTime {
        let now = Self::now();
        let wall = SystemTime::now();
        let shifted = if self >= now { wall.checked_add(self.since(now)) } else { wall.checked_sub(now.since(self)) };
        shifted.unwrap_or(wall)
    }
}

/// Microseconds since 1970 by the wall clock: seeds fencing tokens, decides nothing else.
pub(crate) fn unix_micros() -> u64 {
    #[cfg(test)]
    if let Some(wall) = crate::simulation::wall() {
        return wall.as_micros() as u64;
    }
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturates_at_both_ends() {
        let now = Instant::now();
        assert_eq!(now.after(Duration::MAX).since(now), Duration::MAX - now.since_boot());
        assert_eq!(now.before(Duration::MAX).since_boot(), Duration::ZERO);
        assert_eq!(now.since(now.after(Duration::from_secs(1))), Duration::ZERO);
    }

    #[test]
    fn shows_the_wall_clock() {
        let later = Instant::now().after(Duration::from_secs(60));
        let shown = later.to_system_time().duration_since(SystemTime::now()).unwrap();
        assert!(shown > Duration::from_secs(55) && shown <= Duration::from_secs(60), "{shown:?}");
    }
}
