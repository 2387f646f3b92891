//! Who is before whom: decides from the names of the contenders alone.

use super::name::Contender;
use crate::Mode;

/// How a contender stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing<'a> {
    /// It holds.
    First,
    /// It has to wait.
    Behind {
        /// The contender whose end is to be waited for; `None`: any change.
        watch: Option<&'a str>,
        /// Those before it hold or want the resource as another kind of thing.
        foreign: bool,
    },
    /// It is not there any more.
    Gone,
}

/// How the contender called `own` stands among `children`.
///
/// An exclusive one waits for all before it, a shared one for the exclusive ones before it (so readers that come later do not
/// starve a writer), a permit for so many others before it as there are permits.
pub(super) fn standing<'a>(children: &'a [String], own: &str, mode: Mode) -> Standing<'a> {
    let contenders: Vec<_> = children.iter().filter_map(|child| Contender::read(child)).collect();
    let Some(own) = contenders.iter().find(|contender| contender.name == own) else { return Standing::Gone };
    let before: Vec<_> = contenders.iter().filter(|other| other.is_before(own)).collect();
    if before.iter().any(|other| !other.is_like(mode)) {
        return Standing::Behind { watch: None, foreign: true };
    }
    if let Mode::Permit { of } = mode {
        return if before.len() < of as usize {
            Standing::First
        } else {
            Standing::Behind { watch: None, foreign: false }
        };
    }
    let obstacles = before.into_iter().filter(|other| mode == Mode::Exclusive || other.kind == 'x');
    match obstacles.reduce(|last, other| if last.is_before(other) { other } else { last }) {
        Some(last) => Standing::Behind { watch: Some(last.name), foreign: false },
        None => Standing::First,
    }
}

/// Who has been there longest.
pub(super) fn first(children: &[String]) -> Option<Contender<'_>> {
    let contenders = children.iter().filter_map(|child| Contender::read(child));
    contenders.reduce(|first, other| if other.is_before(&first) { other } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kinds: &str) -> Vec<String> {
        let owner = "0".repeat(40);
        // Starts right before the counter wraps around; the server's answer is in no order.
        let number = |index: usize| (i32::MAX - 1).wrapping_add(i32::try_from(index).unwrap());
        let mut names: Vec<_> =
            kinds.chars().enumerate().map(|(index, kind)| format!("{kind}-{owner}-{:010}", number(index))).collect();
        names.push("a-foreign-node-0000000000".to_owned());
        names
    }

    /// The index of the one that is watched.
    fn waits_for(kinds: &str, own: usize, mode: Mode) -> Option<usize> {
        let names = line(kinds);
        let mut shuffled = names.clone();
        shuffled.reverse();
        match standing(&shuffled, &names[own], mode) {
            Standing::First => None,
            Standing::Behind { watch: Some(watch), foreign: false } => names.iter().position(|name| name == watch),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_exclusive_one_waits_for_the_one_before_it() {
        assert_eq!(waits_for("xxxx", 0, Mode::Exclusive), None);
        assert_eq!(waits_for("xxxx", 3, Mode::Exclusive), Some(2));
        assert_eq!(waits_for("xssx", 3, Mode::Exclusive), Some(2));
    }

    #[test]
    fn a_shared_one_waits_for_the_last_exclusive_one_before_it() {
        assert_eq!(waits_for("sss", 2, Mode::Shared), None);
        assert_eq!(waits_for("sxss", 3, Mode::Shared), Some(1));
        assert_eq!(waits_for("xsxss", 4, Mode::Shared), Some(2));
    }

    #[test]
    fn permits_are_counted() {
        let names = line("pppp");
        let of = |of| standing(&names, &names[2], Mode::Permit { of });
        assert_eq!(of(3), Standing::First);
        assert_eq!(of(2), Standing::Behind { watch: None, foreign: false });
        let mixed = line("xp");
        assert_eq!(
            standing(&mixed, &mixed[1], Mode::Permit { of: 9 }),
            Standing::Behind { watch: None, foreign: true }
        );
    }

    #[test]
    fn who_is_not_there_is_told() {
        assert_eq!(standing(&line("xx"), &line("xxx")[2], Mode::Exclusive), Standing::Gone);
        assert_eq!(first(&line("spx")).map(|first| first.kind), Some('s'));
        assert_eq!(first(&[]), None);
    }
}
