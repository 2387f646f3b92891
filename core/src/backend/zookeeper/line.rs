//! Who is before whom: decides from the contenders alone.

use super::name::Contender;
use crate::Mode;

/// How a contender stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds.
    First,
    /// It has to wait.
    Behind {
        /// What is to be watched; `None` if waiting is no use.
        obstacle: Option<Obstacle>,
        /// Those before it hold or want the resource as another kind of thing.
        foreign: bool,
    },
    /// It is not there any more.
    Gone,
}

/// What may change before it is a contender's turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Anybody may leave.
    Line,
    /// This one has to leave; or, if it waits itself, to get its turn.
    Contender { name: String, is_waiting: bool },
}

/// Whether the numbers do not say who came first.
pub(super) fn is_ambiguous(contenders: &[Contender<'_>]) -> bool {
    contenders.len() > 1 && contenders.iter().any(Contender::is_at_the_end)
}

/// How the contender called `own` stands.
///
/// An exclusive one waits for all before it, a shared one for the exclusive ones before it (so readers that come later do not
/// starve a writer). Each watches the last of those only, so that each change wakes one waiter, or the readers who come next.
///
/// A permit waits until fewer others are before it than there are permits. The first who waits watches the line, as any holder may leave;
/// each of those behind it watches the one before it, which says so when it gets its turn.
pub(super) fn standing(contenders: &[Contender<'_>], own: &str, mode: Mode) -> Standing {
    let Some(own) = contenders.iter().find(|contender| contender.name == own) else { return Standing::Gone };
    let before: Vec<_> = contenders.iter().filter(|other| other.is_before(own)).collect();
    if before.iter().any(|other| !other.is_like(mode)) {
        return Standing::Behind { obstacle: None, foreign: true };
    }
    let holders = if let Mode::Permit { of } = mode { of as usize } else { 0 };
    if before.len() < holders {
        return Standing::First;
    }
    if holders > 0 && before.len() == holders {
        return Standing::Behind { obstacle: Some(Obstacle::Line), foreign: false };
    }
    let obstacles = before.into_iter().filter(|other| mode != Mode::Shared || other.kind == 'x');
    match obstacles.reduce(|last, other| if last.is_before(other) { other } else { last }) {
        Some(last) => {
            let obstacle = Obstacle::Contender { name: last.name.to_owned(), is_waiting: holders > 0 };
            Standing::Behind { obstacle: Some(obstacle), foreign: false }
        }
        None => Standing::First,
    }
}

/// Those who hold, first come first. `permits` is how many may if they are permits.
pub(super) fn holders<'a>(mut contenders: Vec<Contender<'a>>, permits: usize) -> Vec<Contender<'a>> {
    let any = contenders.first().copied();
    contenders.sort_by_key(|contender| any.map(|any| contender.distance(&any)));
    let kind = contenders.first().map(|first| first.kind);
    let like_the_first = contenders.iter().take_while(|contender| Some(contender.kind) == kind).count();
    contenders.truncate(match kind {
        Some('x') => 1,
        Some('p') => like_the_first.min(permits),
        _ => like_the_first,
    });
    contenders
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
        match standing(&read(&names), &names[own], mode) {
            Standing::First => None,
            Standing::Behind { obstacle: Some(Obstacle::Contender { name, .. }), foreign: false } => {
                names.iter().position(|other| *other == name)
            }
            other => panic!("{other:?}"),
        }
    }

    fn read(names: &[String]) -> Vec<Contender<'_>> {
        names.iter().rev().filter_map(|name| Contender::read(name)).collect()
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
        let of = |own: usize, of| standing(&read(&names), &names[own], Mode::Permit { of });
        assert_eq!(of(2, 3), Standing::First);
        assert_eq!(of(2, 2), Standing::Behind { obstacle: Some(Obstacle::Line), foreign: false });
        let behind = Obstacle::Contender { name: names[2].clone(), is_waiting: true };
        assert_eq!(of(3, 2), Standing::Behind { obstacle: Some(behind), foreign: false });
        let mixed = line("xp");
        assert_eq!(
            standing(&read(&mixed), &mixed[1], Mode::Permit { of: 9 }),
            Standing::Behind { obstacle: None, foreign: true }
        );
    }

    #[test]
    fn who_is_not_there_is_told() {
        assert_eq!(standing(&read(&line("xx")), &line("xxx")[2], Mode::Exclusive), Standing::Gone);
    }

    #[test]
    fn holders_are_told_from_waiters() {
        let held = |kinds: &str| holders(read(&line(kinds)), 2).len();
        assert_eq!(["", "x", "xxs", "s", "sssxs", "p", "ppp"].map(held), [0, 1, 1, 1, 3, 1, 2]);
    }

    /// The last number for all, or the first ones for some of them that were made at the same time.
    #[test]
    fn at_the_end_of_the_numbers_the_transactions_decide() {
        for numbers in [[i32::MAX; 3], [i32::MAX, i32::MIN, i32::MAX], [i32::MIN + 1, i32::MIN, i32::MIN + 1]] {
            let names = (0..3).zip(numbers).map(|(owner, number)| format!("x-{owner:040}-{number:010}"));
            let names: Vec<_> = names.collect();
            let mut contenders = read(&names);
            assert!(is_ambiguous(&contenders) && !is_ambiguous(&contenders[..1]));
            contenders.iter_mut().zip([7, 5, 6]).for_each(|(contender, zxid)| contender.created = Some(zxid));
            let first: Vec<_> =
                names.iter().map(|name| standing(&contenders, name, Mode::Exclusive) == Standing::First).collect();
            assert_eq!(first, [false, true, false]);
        }
    }
}
