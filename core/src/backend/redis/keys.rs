//! Which keys of a server belong to a resource.

use std::borrow::Cow;

use crate::Resource;

/// The keys of one resource. Beside the lock, each has the lock's name in it and is in the same cluster slot.
pub(super) struct Key<'a> {
    lock: Cow<'a, str>,
    /// The lock's name has a hash tag of its own, which decides on the slot.
    tagged: bool,
}

/// A key other than the lock itself.
#[derive(Clone, Copy)]
pub(super) enum Side {
    /// The fencing counter, and who had the lock last.
    Fence,
    /// There while somebody waits to hold exclusively what is held shared.
    Writer,
    /// Which permit of a semaphore each holder has, where these are numbered.
    Permits,
    /// The channel on which a release is published.
    Wake,
    /// Who waits to be served in order.
    Queue,
    /// When each of these is forgotten.
    QueueUntil,
}

impl<'a> Key<'a> {
    pub(super) fn of(prefix: &str, resource: &'a Resource) -> Self {
        let lock = match prefix {
            "" => Cow::Borrowed(resource.as_str()),
            prefix => Cow::Owned(format!("{prefix}{resource}")),
        };
        // Few have any; the first look costs the others least.
        let tagged = lock.contains('{') && has_tag(&lock);
        Self { lock, tagged }
    }

    pub(super) fn lock(&self) -> &str {
        &self.lock
    }

    /// The name of a side key, in parts.
    pub(super) fn parts(&self, side: Side) -> [&str; 4] {
        let kind = match side {
            Side::Fence => FENCES,
            Side::Writer => "polylock:writer:",
            Side::Permits => "polylock:permits:",
            Side::Wake => "polylock:wake:",
            Side::Queue => "polylock:queue:",
            Side::QueueUntil => "polylock:queue-until:",
        };
        let (open, close) = if self.tagged { ("", "") } else { ("{", "}") };
        [kind, open, &self.lock, close]
    }

    /// The name of a side key.
    pub(super) fn side(&self, side: Side) -> String {
        self.parts(side).concat()
    }
}

/// Whether a part of the name, in braces, decides on the slot.
fn has_tag(name: &str) -> bool {
    let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    tag.is_some_and(|(tag, _)| !tag.is_empty())
}

/// What the name of every fence begins with.
pub(super) const FENCES: &str = "polylock:fence:";

/// The locks that may have this key as their fence: `a` and `{a}` share one.
pub(super) fn locks_of(fence: &str) -> impl Iterator<Item = &str> {
    let name = fence.strip_prefix(FENCES).unwrap_or_default();
    let inner = name.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
    [Some(name).filter(|name| name.contains('{')), inner].into_iter().flatten().filter(|lock| !lock.is_empty())
}

/// The keys of all resources of a claim.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    prefix: &'a str,
    resources: &'a [Resource],
}

impl<'a> Keys<'a> {
    pub(super) fn of(prefix: &'a str, resources: &'a [Resource]) -> Self {
        Self { prefix, resources }
    }

    pub(super) fn len(&self) -> usize {
        self.resources.len()
    }

    pub(super) fn each(&self) -> impl Iterator<Item = Key<'a>> {
        let prefix = self.prefix;
        self.resources.iter().map(move |resource| Key::of(prefix, resource))
    }

    /// The list on which python-redis-lock waits for a release of each of them, if they have its prefix.
    pub(super) fn signals(&self) -> impl Iterator<Item = String> {
        let theirs = self.prefix.starts_with("lock:").then(|| self.each());
        theirs.into_iter().flatten().map(|key| key.lock.replacen("lock:", "lock-signal:", 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn side_keys_share_the_slot_of_the_lock() {
        let resource = |name| Resource::new(name).unwrap();
        let side = |name, side| Key::of("app:", &resource(name)).side(side);
        assert_eq!(Key::of("app:", &resource("r")).lock(), "app:r");
        assert_eq!(side("r", Side::Fence), "polylock:fence:{app:r}");
        assert_eq!(side("{order}:1", Side::Writer), "polylock:writer:app:{order}:1");
        for (name, lock) in [("r", "app:r"), ("{order}:1", "app:{order}:1")] {
            assert!(locks_of(&side(name, Side::Fence)).any(|other| other == lock), "{name}");
        }
        assert_eq!(side("{}:1", Side::Wake), "polylock:wake:{app:{}:1}");
    }

    #[test]
    fn signals_are_for_the_prefix_of_who_waits_for_them() {
        let resources = ["r", "lock:s"].map(|name| Resource::new(name).unwrap());
        let signals = |prefix| Keys::of(prefix, &resources).signals().collect::<Vec<_>>();
        assert_eq!(signals("lock:"), ["lock-signal:r", "lock-signal:lock:s"]);
        assert_eq!(signals("lock:app:"), ["lock-signal:app:r", "lock-signal:app:lock:s"]);
        assert!(signals("").is_empty() && signals("app:lock:").is_empty());
    }
}
