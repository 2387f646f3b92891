//! Which keys of a server belong to a resource.

use crate::Resource;

/// The keys of one resource.
pub(super) struct Key {
    pub(super) lock: String,
    /// The fencing counter, and who had the lock last.
    pub(super) fence: String,
    /// There while somebody waits to hold exclusively what is held shared.
    pub(super) writer: String,
    /// Where a release is published.
    pub(super) channel: String,
}

impl Key {
    pub(super) fn of(prefix: &str, resource: &Resource) -> Self {
        let lock = format!("{prefix}{resource}");
        let side = |what| side(what, &lock);
        Self { fence: side("fence"), writer: side("writer"), channel: side("wake"), lock }
    }

    /// Who waits to be served in order, and when each is forgotten.
    fn queue(&self) -> [String; 2] {
        ["queue", "queue-until"].map(|what| side(what, &self.lock))
    }
}

/// A key in the same cluster slot as the lock: with its own hash tag if it has one, else all of it as one.
fn side(what: &str, lock: &str) -> String {
    match lock.split_once('{').and_then(|(_, rest)| rest.split_once('}')) {
        Some((tag, _)) if !tag.is_empty() => format!("polylock:{what}:{lock}"),
        _ => format!("polylock:{what}:{{{lock}}}"),
    }
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
pub(super) struct Keys(Vec<Key>);

impl Keys {
    pub(super) fn of(prefix: &str, resources: &[Resource]) -> Self {
        Self(resources.iter().map(|resource| Key::of(prefix, resource)).collect())
    }

    fn collect<'a>(&'a self, parts: &[fn(&'a Key) -> &'a String]) -> Vec<String> {
        parts.iter().flat_map(|part| self.0.iter().map(|key| part(key).clone())).collect()
    }

    pub(super) fn locks(&self) -> Vec<String> {
        self.collect(&[|key| &key.lock])
    }

    pub(super) fn locks_and_fences(&self) -> Vec<String> {
        self.collect(&[|key| &key.lock, |key| &key.fence])
    }

    pub(super) fn locks_fences_and_writers(&self) -> Vec<String> {
        self.collect(&[|key| &key.lock, |key| &key.fence, |key| &key.writer])
    }

    pub(super) fn queues(&self) -> Vec<String> {
        self.0.iter().flat_map(Key::queue).collect()
    }

    pub(super) fn channels(&self) -> Vec<String> {
        self.collect(&[|key| &key.channel])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn side_keys_share_the_slot_of_the_lock() {
        let key = |name| Key::of("app:", &Resource::new(name).unwrap());
        assert_eq!(key("r").lock, "app:r");
        assert_eq!(key("r").fence, "polylock:fence:{app:r}");
        assert_eq!(key("{order}:1").fence, "polylock:fence:app:{order}:1");
        for (name, lock) in [("r", "app:r"), ("{order}:1", "app:{order}:1")] {
            assert!(locks_of(&key(name).fence).any(|other| other == lock), "{name}");
        }
        assert_eq!(key("{}:1").channel, "polylock:wake:{app:{}:1}");
    }
}
