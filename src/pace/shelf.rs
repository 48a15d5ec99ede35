//! An index of many keys (or budgets): which one is ready, or else the first to be.
//!
//! Two tournament trees over the same items: those that are ready, by whose turn it is, and those that wait, by time.
//! Every operation costs log₂ n comparisons along one path.

use super::Time;

type Entry = (u64, u32);
const NOBODY: Entry = (u64::MAX, u32::MAX);

/// A tree of minima.
#[derive(Clone, Debug, Default)]
struct Tree {
    leaves: usize,
    nodes: Vec<Entry>,
}

impl Tree {
    fn new(items: usize) -> Tree {
        let leaves = items.next_power_of_two().max(1);
        Tree { leaves, nodes: vec![NOBODY; leaves * 2] }
    }

    fn set(&mut self, item: usize, value: Option<u64>) {
        let entry = value.map_or(NOBODY, |value| (value, item as u32));
        let mut node = self.leaves + item;
        if self.nodes[node] == entry {
            return;
        }
        self.nodes[node] = entry;
        while node > 1 {
            node /= 2;
            let least = self.nodes[node * 2].min(self.nodes[node * 2 + 1]);
            if self.nodes[node] == least {
                return;
            }
            self.nodes[node] = least;
        }
    }

    fn first(&self) -> Option<Entry> {
        let first = self.nodes[1];
        (first != NOBODY).then_some(first)
    }

    fn first_but(&self, except: usize) -> Option<Entry> {
        let mut first = NOBODY;
        let mut node = self.leaves + except;
        while node > 1 {
            first = first.min(self.nodes[node ^ 1]);
            node /= 2;
        }
        (first != NOBODY).then_some(first)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    ready: Tree,
    waiting: Tree,
}

impl Shelf {
    pub fn new(items: usize) -> Shelf {
        Shelf { ready: Tree::new(items), waiting: Tree::new(items) }
    }

    /// The item has room at `free`; `turn` orders those that are ready.
    pub fn set(&mut self, item: usize, free: Time, turn: u64, now: Time) {
        if free <= now {
            self.ready.set(item, Some(turn));
            self.waiting.set(item, None);
        } else {
            self.ready.set(item, None);
            self.waiting.set(item, Some(free.as_nanos()));
        }
    }

    /// The item is no candidate, until it is set again.
    pub fn remove(&mut self, item: usize) {
        self.ready.set(item, None);
        self.waiting.set(item, None);
    }

    /// The item to use at `now`, and when it is free: one that is ready by its turn, else the first to be.
    pub fn best(&mut self, now: Time, turns: &[u64], except: Option<usize>) -> Option<(usize, Time)> {
        while let Some((free, item)) = self.waiting.first() {
            if free > now.as_nanos() {
                break;
            }
            self.waiting.set(item as usize, None);
            self.ready.set(item as usize, turns.get(item as usize).copied());
        }
        let pick = |tree: &Tree| except.map_or_else(|| tree.first(), |item| tree.first_but(item));
        match pick(&self.ready) {
            Some((_, item)) => Some((item as usize, now)),
            None => pick(&self.waiting).map(|(free, item)| (item as usize, Time::from_nanos(free))),
        }
    }
}
