//! Slows down whoever tries tokens that nobody knows: so many attempts per client address, then one now and then.
//!
//! A table of fixed size remembers addresses, so that a look costs the same however many there are; those that were
//! seen least lately make room. A token that worked from an address before goes on working from there, whatever
//! others try from behind the same proxy.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens in a row that an address may send.
pub(super) const ATTEMPTS: u32 = 10;
/// Then one more is heard after each of these.
pub(super) const EVERY: Duration = Duration::from_secs(6);
/// Addresses that are remembered: sets of so many.
const SETS: usize = 1_024;
const WAYS: usize = 4;
/// Tokens whose use from an address is remembered.
const TOKENS: usize = 64;

/// What is known of one address.
#[derive(Debug, Clone, Copy)]
struct Seen {
    address: IpAddr,
    /// When all attempts are free again.
    free_at: Instant,
    /// Tokens that worked from there, one bit each.
    worked: u64,
    last: Instant,
}

/// What becomes of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The token is looked at: known, or not.
    Heard,
    /// It is not, known or not, for so long.
    TooMany(Duration),
}

/// The addresses that tokens came from.
#[derive(Debug)]
pub(super) struct Throttle {
    sets: Mutex<Vec<[Option<Seen>; WAYS]>>,
    /// Nobody can choose addresses that fall into one set.
    hasher: RandomState,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { sets: Mutex::new(vec![[None; WAYS]; SETS]), hasher: RandomState::new() }
    }

    /// An attempt from that address, with the token of that number, or with one that nobody knows.
    pub(super) fn attempt(&self, address: IpAddr, token: Option<usize>, now: Instant) -> Verdict {
        let address = network(address);
        let place = usize::try_from(self.hasher.hash_one(address) % SETS as u64).unwrap_or(0);
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = slot(&mut sets[place], address, now);
        seen.last = now;
        let bit = token.map(|token| 1_u64 << (token % TOKENS));
        if bit.is_some_and(|bit| seen.worked & bit != 0) {
            return Verdict::Heard;
        }
        let owed = seen.free_at.saturating_duration_since(now);
        let most = EVERY * (ATTEMPTS - 1);
        if owed > most {
            return Verdict::TooMany(owed - most);
        }
        match bit {
            Some(bit) => seen.worked |= bit,
            None => seen.free_at = now + owed + EVERY,
        }
        Verdict::Heard
    }
}

/// The place of an address in its set.
fn slot(set: &mut [Option<Seen>; WAYS], address: IpAddr, now: Instant) -> &mut Seen {
    let known = set.iter().position(|seen| seen.is_some_and(|seen| seen.address == address));
    let oldest = || (0..WAYS).min_by_key(|&way| set[way].map(|seen| seen.last)).unwrap_or(0);
    let way = known.unwrap_or_else(oldest);
    if known.is_none() {
        set[way] = None;
    }
    set[way].get_or_insert(Seen { address, free_at: now, worked: 0, last: now })
}

/// One customer of IPv6 has 2^64 addresses at least.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_so_many_attempts_and_then_one_now_and_then() {
        let (throttle, start) = (Throttle::new(), Instant::now());
        let wrong = |now| throttle.attempt(ip("192.0.2.1"), None, now);
        for _ in 0..ATTEMPTS {
            assert_eq!(wrong(start), Verdict::Heard);
        }
        assert_eq!(wrong(start), Verdict::TooMany(EVERY));
        let right = |address: &str, now| throttle.attempt(ip(address), Some(3), now);
        assert_eq!(right("192.0.2.1", start), Verdict::TooMany(EVERY), "a right guess is not heard either");
        assert_eq!(right("192.0.2.2", start), Verdict::Heard, "from another address it is");
        assert_eq!(wrong(start + EVERY), Verdict::Heard);
        assert_eq!(wrong(start + EVERY), Verdict::TooMany(EVERY));
        let later = start + EVERY * 100;
        for _ in 0..ATTEMPTS {
            assert_eq!(wrong(later), Verdict::Heard, "no more is saved up");
        }
        assert_eq!(wrong(later), Verdict::TooMany(EVERY));
    }

    #[test]
    fn a_token_that_worked_from_there_goes_on_working() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        let proxy = ip("192.0.2.1");
        assert_eq!(throttle.attempt(proxy, Some(0), now), Verdict::Heard);
        for _ in 0..100 {
            throttle.attempt(proxy, None, now);
        }
        assert_eq!(throttle.attempt(proxy, Some(0), now), Verdict::Heard);
        assert_eq!(throttle.attempt(proxy, Some(1), now), Verdict::TooMany(EVERY));
    }

    #[test]
    fn addresses_beyond_its_size_are_forgotten_and_one_customer_is_one_address() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        for n in 0..200_000_u32 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(n));
            assert_eq!(throttle.attempt(address, None, now + Duration::from_micros(n.into())), Verdict::Heard);
        }
        let remembered = throttle.sets.lock().expect("not poisoned").iter().flatten().flatten().count();
        assert_eq!(remembered, SETS * WAYS);
        let later = now + Duration::from_secs(60);
        for n in 0..ATTEMPTS {
            assert_eq!(throttle.attempt(ip(&format!("2001:db8::{n}")), None, later), Verdict::Heard);
        }
        assert_ne!(throttle.attempt(ip("2001:db8::ffff"), None, later), Verdict::Heard);
        assert_eq!(throttle.attempt(ip("2001:db8:0:1::1"), None, later), Verdict::Heard);
        let mapped = ip("::ffff:198.51.100.1");
        for _ in 0..ATTEMPTS {
            assert_eq!(throttle.attempt(mapped, None, later), Verdict::Heard);
        }
        assert_ne!(throttle.attempt(ip("198.51.100.1"), None, later), Verdict::Heard, "the same address");
    }
}
