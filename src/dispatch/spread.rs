//! Who should hold which pacing groups: each live dispatcher as many as the others, or one more.
//!
//! Everybody looks at the same rows and comes to the same answer by himself; where two looked at different moments, the
//! store lets one of them take a group. What is held stays where it is, as long as that is fair.

use std::collections::BTreeMap;
use std::time::Duration;

/// What nobody holds for so long is taken by whoever sees it, whosever turn it was.
pub(super) const LEFT_OVER_AFTER: Duration = Duration::from_secs(3);

/// Who holds a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder<'a> {
    /// This dispatcher.
    Me,
    /// Another one; or this one, about to let go of it.
    Other(&'a str),
    /// Nobody, for so long.
    Nobody(Duration),
}

/// What to do now: numbers of groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// To take.
    pub take: Vec<usize>,
    /// To give away.
    pub give: Vec<usize>,
    /// Something was left over by those whose turn it was.
    pub left_over: bool,
}

/// What `me` should take and give away, with these dispatchers alive (`me` is one of them, named or not).
///
/// The more a dispatcher holds, the sooner it may keep one more than the others; ties go by name. So nobody has to
/// give anything away where the shares are even already.
pub(super) fn spread(me: &str, alive: &[&str], holders: &[Holder<'_>]) -> Turn {
    let mut held: BTreeMap<&str, usize> = alive.iter().map(|name| (*name, 0)).collect();
    held.entry(me).or_default();
    for holder in holders {
        let name = match holder {
            Holder::Me => me,
            Holder::Other(name) => name,
            Holder::Nobody(_) => continue,
        };
        if let Some(count) = held.get_mut(name) {
            *count += 1;
        }
    }
    let (even, more) = (holders.len() / held.len(), holders.len() % held.len());
    let mut order: Vec<(&str, usize)> = held.into_iter().collect();
    order.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let free = holders.iter().enumerate().filter_map(|(n, holder)| match holder {
        Holder::Nobody(since) => Some((n, *since)),
        Holder::Me | Holder::Other(_) => None,
    });
    let mut free = free.peekable();
    let mut turn = Turn::default();
    for (place, (name, count)) in order.into_iter().enumerate() {
        let share = even + usize::from(place < more);
        let is_me = name == me;
        if is_me && count > share {
            let mine = holders.iter().enumerate().filter(|(_, holder)| **holder == Holder::Me).map(|(n, _)| n);
            // The last ones: what is taken first is given away last.
            turn.give = mine.skip(share).collect();
        }
        for _ in count..share {
            let Some((n, since)) = free.next() else { break };
            if is_me {
                turn.take.push(n);
            } else if since >= LEFT_OVER_AFTER {
                turn.left_over = true;
                turn.take.push(n);
            }
        }
    }
    turn.take.sort_unstable();
    turn
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    /// Dispatchers a, b, …: what each of them holds.
    struct Town {
        names: Vec<String>,
        /// Who holds each group, by place.
        groups: Vec<Option<usize>>,
    }

    impl Town {
        fn new(dispatchers: usize, groups: usize) -> Self {
            let names = (0..dispatchers).map(|n| format!("d{n:02}")).collect();
            Self { names, groups: vec![None; groups] }
        }

        fn turn(&self, who: usize, alive: &[usize], free_for: Duration) -> Turn {
            let name = |n: usize| self.names[n].as_str();
            let alive: Vec<&str> = alive.iter().map(|n| name(*n)).collect();
            let holder = |holder: &Option<usize>| match holder {
                None => Holder::Nobody(free_for),
                Some(n) if *n == who => Holder::Me,
                Some(n) => Holder::Other(name(*n)),
            };
            let holders: Vec<Holder<'_>> = self.groups.iter().map(holder).collect();
            spread(name(who), &alive, &holders)
        }

        /// Everybody alive does its turn, one after the other, until nothing changes; how many moves it took.
        fn settle(&mut self, alive: &[usize]) -> usize {
            let mut moves = 0;
            for _ in 0..20 {
                let before = moves;
                for &who in alive {
                    let turn = self.turn(who, alive, NOW);
                    for n in turn.give {
                        assert_eq!(self.groups[n].take(), Some(who));
                        moves += 1;
                    }
                    for n in turn.take {
                        assert_eq!(self.groups[n].replace(who), None);
                        moves += 1;
                    }
                }
                if moves == before {
                    return moves;
                }
            }
            panic!("it never settles: {:?}", self.groups);
        }

        fn counts(&self, alive: &[usize]) -> Vec<usize> {
            alive.iter().map(|who| self.groups.iter().filter(|g| **g == Some(*who)).count()).collect()
        }

        fn assert_even(&self, alive: &[usize]) {
            let (even, counts) = (self.groups.len() / alive.len(), self.counts(alive));
            assert!(counts.iter().all(|count| *count == even || *count == even + 1), "{counts:?}");
            assert_eq!(counts.iter().sum::<usize>(), self.groups.len(), "somebody holds each");
        }
    }

    #[test]
    fn whoever_comes_or_goes_the_shares_are_even_and_settle() {
        for groups in 0..24 {
            let mut town = Town::new(6, groups);
            let mut seen = Vec::new();
            for alive in [vec![0], vec![0, 1], vec![0, 1, 2, 3], vec![1, 2, 3], vec![1, 2, 3, 4, 5], vec![4, 5, 0]] {
                for group in &mut town.groups {
                    *group = group.filter(|who| alive.contains(who));
                }
                town.settle(&alive);
                town.assert_even(&alive);
                assert_eq!(town.settle(&alive), 0, "no flapping");
                seen.push(town.groups.clone());
            }
            assert_eq!(seen.len(), 6);
        }
    }

    #[test]
    fn no_more_moves_than_it_takes() {
        let mut town = Town::new(5, 8);
        assert_eq!(town.settle(&[0, 1, 2, 3]), 8);
        assert_eq!(town.counts(&[0, 1, 2, 3]), [2, 2, 2, 2]);
        assert_eq!(town.settle(&[0, 1, 2, 3, 4]), 2, "one is given away, and taken");
        assert_eq!(town.counts(&[0, 1, 2, 3, 4]), [2, 2, 2, 1, 1]);
    }

    #[test]
    fn all_who_look_at_once_take_different_groups() {
        for (dispatchers, groups) in [(3, 8), (4, 8), (5, 8), (7, 3)] {
            let town = Town::new(dispatchers, groups);
            let alive: Vec<usize> = (0..dispatchers).collect();
            let mut taken: Vec<usize> = alive.iter().flat_map(|who| town.turn(*who, &alive, NOW).take).collect();
            taken.sort_unstable();
            assert_eq!(taken, (0..groups).collect::<Vec<_>>(), "each by one");
        }
    }

    #[test]
    fn what_a_dead_dispatcher_holds_is_left_alone_until_it_is_free() {
        let mut town = Town::new(3, 6);
        town.settle(&[0, 1, 2]);
        // Nobody knows that 2 is dead; then its heartbeat is missing; then its leases run out.
        assert_eq!(town.turn(0, &[0, 1, 2], NOW), Turn::default());
        assert_eq!(town.turn(0, &[0, 1], NOW), Turn::default());
        for group in &mut town.groups {
            *group = group.filter(|who| *who != 2);
        }
        assert_eq!(town.turn(0, &[0, 1], NOW).take.len() + town.turn(1, &[0, 1], NOW).take.len(), 2);
    }

    #[test]
    fn what_is_left_over_is_taken_by_anybody() {
        let mut town = Town::new(2, 4);
        town.groups = vec![Some(0), Some(0), None, None];
        assert_eq!(town.turn(0, &[0, 1], NOW), Turn::default(), "it is the other one's turn");
        let turn = town.turn(0, &[0, 1], LEFT_OVER_AFTER);
        assert_eq!((turn.take, turn.left_over), (vec![2, 3], true));
        let turn = town.turn(1, &[0, 1], LEFT_OVER_AFTER);
        assert_eq!((turn.take, turn.left_over), (vec![2, 3], false), "its own");
    }

    #[test]
    fn what_is_about_to_be_let_go_of_does_not_count() {
        let holders = [Holder::Me, Holder::Me, Holder::Other("d0"), Holder::Other("d0")];
        assert_eq!(spread("d0", &["d0", "d1"], &holders), Turn::default());
    }
}
