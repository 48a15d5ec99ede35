//! Leases: one dispatcher at a time may spend a pacing group's budget, on both databases.

#[path = "common/store.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Fixture, contract};
use futures_util::future::join_all;
use paceline::job::{DeadReason, Given, Job};
use paceline::store::{
    Buried, LeaseState, LeaseSurvey, LeaseTake, LeaseView, LeaseWrite, NewJob, Origin, Store, StoreError, Wake,
};
use sqlx::Connection as _;

const TTL: Duration = Duration::from_secs(60);
/// Runs out while a test looks on.
const SHORT: Duration = Duration::from_millis(300);
/// For what must happen, however busy the machine is.
const SOON: Duration = Duration::from_secs(20);

contract! {
    one_of_many_takers_wins
    one_of_many_takers_wins_what_ran_out
    a_lease_is_held_while_it_is_valid
    groups_do_not_touch_each_other
    what_ran_out_is_taken_with_its_last_state
    an_owner_that_was_replaced_changes_nothing
    a_lease_that_ran_out_untaken_can_be_renewed
    an_owner_takes_its_own_lease_again
    what_is_released_is_taken_at_once
    releasing_wakes_those_who_wait
    renewing_and_taking_end_a_clean_state
    a_large_state_comes_back_as_it_was
    times_are_those_of_the_database
    a_clock_that_is_set_back_gives_no_negative_times
    only_owners_release
    a_thousand_groups_are_one_matter
    groups_of_another_configuration_are_waited_for_and_inherited
    two_configurations_never_hold_at_once
    a_look_shows_who_holds_what_and_who_lives
    what_is_pinned_to_what_others_pace_is_left_to_them
    a_closed_store_is_not_available
}

fn owner(name: &str) -> String {
    name.to_owned()
}

/// What the dispatchers of these tests know of a provider, unless they say otherwise.
fn groups() -> Vec<String> {
    ["", "a", "b"].map(str::to_owned).to_vec()
}

fn write(name: &str, epoch: i64, state: &str) -> LeaseWrite {
    LeaseWrite { name: name.to_owned(), epoch, state: state.to_owned() }
}

async fn take(store: &Store, who: &str, ttl: Duration) -> LeaseTake {
    let taken = store.leases_take("geo", &["a"], &groups(), &owner(who), ttl).await.expect("asked");
    assert_eq!((taken.answers.len(), taken.left.len()), (1, 0));
    taken.answers.into_iter().next().expect("an answer")
}

/// The epoch and the last state.
async fn taken(store: &Store, who: &str, ttl: Duration) -> (i64, Option<LeaseState>) {
    match take(store, who, ttl).await {
        LeaseTake::Taken { epoch, last } => (epoch, last),
        held => panic!("expected it to be taken, got {held:?}"),
    }
}

async fn holder(store: &Store, asking: &str) -> (String, Duration) {
    match take(store, asking, TTL).await {
        LeaseTake::Held { owner, expires_in } => (owner, expires_in),
        taken => panic!("expected it to be held, got {taken:?}"),
    }
}

async fn renew(store: &Store, who: &str, epoch: i64, ttl: Duration, state: &str) -> bool {
    store.leases_renew("geo", &owner(who), ttl, &[write("a", epoch, state)]).await.expect("asked") == [true]
}

async fn release(store: &Store, who: &str, epoch: i64, state: &str) -> bool {
    store.leases_release("geo", &owner(who), &[write("a", epoch, state)]).await.expect("asked") == [true]
}

/// Takes as soon as it can be had, and sees it held until then.
async fn taken_when_free(store: &Store, who: &str, from: &str) -> (i64, Option<LeaseState>) {
    let begun = Instant::now();
    loop {
        match take(store, who, TTL).await {
            LeaseTake::Taken { epoch, last } => return (epoch, last),
            LeaseTake::Held { owner, expires_in } => {
                assert_eq!(owner, from);
                assert!(expires_in <= SHORT && begun.elapsed() < SOON, "{expires_in:?}");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The row as text, without what only a look at the clock would tell.
async fn row(f: &Fixture) -> Vec<String> {
    f.texts(
        "SELECT provider || '/' || name || ' ' || COALESCE(owner, 'nobody') || ' ' || CAST(epoch AS TEXT) || ' '
            || CAST(taken_ms AS TEXT) || ' ' || CAST(renewed_ms AS TEXT) || ' ' || CAST(expires_ms AS TEXT) || ' '
            || CASE WHEN clean THEN 'clean ' ELSE 'unclean ' END || COALESCE(state, 'none')
         FROM leases ORDER BY provider, name",
    )
    .await
}

/// The database's clock, as the fixture's own connection reads it.
async fn database_ms(f: &Fixture) -> i64 {
    f.number(if f.is_sqlite() {
        "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    } else {
        "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"
    })
    .await
}

async fn race(f: &Fixture) -> (Vec<i64>, Vec<String>) {
    // Eight dispatchers in two processes.
    let second = f.another().await;
    let takers = (0..8).map(|n| {
        let store = if n % 2 == 0 { f.store.clone() } else { second.clone() };
        tokio::spawn(async move { take(&store, &format!("d{n}"), TTL).await })
    });
    let (mut epochs, mut holders) = (Vec::new(), Vec::new());
    for answer in join_all(takers).await {
        match answer.expect("no panic") {
            LeaseTake::Taken { epoch, .. } => epochs.push(epoch),
            LeaseTake::Held { owner, .. } => holders.push(owner),
        }
    }
    second.close().await;
    (epochs, holders)
}

async fn one_of_many_takers_wins(f: Fixture) {
    let (epochs, holders) = race(&f).await;
    assert_eq!(epochs, [1]);
    let winner = f.store.leases().await.expect("read").pop().expect("one").owner.expect("an owner");
    assert_eq!(holders, vec![winner; 7]);
}

async fn one_of_many_takers_wins_what_ran_out(f: Fixture) {
    for round in 1..=10 {
        let (epochs, holders) = race(&f).await;
        assert_eq!((epochs, holders.len()), (vec![round], 7));
        f.execute("UPDATE leases SET expires_ms = 0").await;
    }
}

async fn a_lease_is_held_while_it_is_valid(f: Fixture) {
    assert_eq!(taken(&f.store, "one", TTL).await, (1, None));
    let before = row(&f).await;
    let (who, expires_in) = holder(&f.store, "two").await;
    assert_eq!(who, "one");
    assert!(expires_in <= TTL && expires_in > TTL - SOON, "{expires_in:?}");
    assert_eq!(row(&f).await, before, "asking changes nothing");
    assert!(renew(&f.store, "one", 1, 2 * TTL, "{}").await);
    let (_, expires_in) = holder(&f.store, "two").await;
    assert!(expires_in > TTL, "{expires_in:?}");
    let seen = f.store.leases().await.expect("read").pop().expect("one");
    assert!(seen.expires_in > TTL && seen.expires_in <= 2 * TTL, "{seen:?}");
    let (provider, name, owner) = (owner("geo"), owner("a"), Some(owner("one")));
    assert_eq!(seen, LeaseView { provider, name, owner, epoch: 1, expires_in: seen.expires_in, clean: false });
}

async fn groups_do_not_touch_each_other(f: Fixture) {
    for (provider, name) in [("geo", ""), ("geo", "a"), ("geo", "b"), ("other", "a")] {
        let who = owner(&format!("{provider}-{name}"));
        let taken = f.store.leases_take(provider, &[name], &groups(), &who, TTL).await.expect("asked");
        assert_eq!(taken.answers, [LeaseTake::Taken { epoch: 1, last: None }]);
    }
    assert!(renew(&f.store, "geo-a", 1, TTL, "of a").await);
    assert!(release(&f.store, "geo-a", 1, "of a").await);
    let seen = f.store.leases().await.expect("read");
    let seen: Vec<_> =
        seen.iter().map(|l| (l.provider.as_str(), l.name.as_str(), l.owner.is_some(), l.clean)).collect();
    assert_eq!(
        seen,
        [("geo", "", true, false), ("geo", "a", false, true), ("geo", "b", true, false), ("other", "a", true, false)]
    );
    assert_eq!(f.number("SELECT COUNT(*) FROM leases WHERE state IS NULL").await, 3);
}

async fn what_ran_out_is_taken_with_its_last_state(f: Fixture) {
    let (epoch, _) = taken(&f.store, "one", TTL).await;
    assert!(renew(&f.store, "one", epoch, TTL, "{\"spent\":1}").await);
    assert!(renew(&f.store, "one", epoch, SHORT, "{\"spent\":2}").await);
    let (second, last) = taken_when_free(&f.store, "two", "one").await;
    let last = last.expect("a state");
    assert_eq!((second, last.state.as_str(), last.clean), (epoch + 1, "{\"spent\":2}", false));
    assert!(last.saved_ago >= SHORT && last.saved_ago < SHORT + SOON, "{:?}", last.saved_ago);
    // It died before it wrote anything: what the first one wrote counts, at the time when it did.
    f.execute("UPDATE leases SET expires_ms = 0, renewed_ms = renewed_ms - 100000").await;
    let (third, last) = taken(&f.store, "three", TTL).await;
    let last = last.expect("a state");
    assert_eq!((third, last.state.as_str(), last.clean), (epoch + 2, "{\"spent\":2}", false));
    assert!(last.saved_ago >= Duration::from_secs(100), "{:?}", last.saved_ago);
    // And without a state there is none.
    f.execute("UPDATE leases SET expires_ms = 0, state = NULL").await;
    assert_eq!(taken(&f.store, "four", TTL).await, (epoch + 3, None));
}

async fn an_owner_that_was_replaced_changes_nothing(f: Fixture) {
    let (old, _) = taken(&f.store, "one", TTL).await;
    f.execute("UPDATE leases SET expires_ms = 0").await;
    let (new, _) = taken(&f.store, "two", TTL).await;
    let before = row(&f).await;
    for (who, epoch) in [("one", old), ("one", new), ("two", old), ("two", new + 1), ("three", new)] {
        assert!(!renew(&f.store, who, epoch, TTL, "late").await, "{who} {epoch}");
        assert!(!release(&f.store, who, epoch, "late").await, "{who} {epoch}");
    }
    let none = f.store.leases_renew("geo", &owner("two"), TTL, &[write("none", new, "late")]).await;
    assert_eq!(none.expect("asked"), [false]);
    assert_eq!(row(&f).await, before);
    assert!(renew(&f.store, "two", new, TTL, "in time").await);
    assert!(release(&f.store, "two", new, "at the end").await);
    let before = row(&f).await;
    assert!(!renew(&f.store, "two", new, TTL, "late").await, "it was let go of");
    assert!(!release(&f.store, "two", new, "late").await);
    assert_eq!(row(&f).await, before);
}

async fn a_lease_that_ran_out_untaken_can_be_renewed(f: Fixture) {
    let (epoch, _) = taken(&f.store, "one", TTL).await;
    f.execute("UPDATE leases SET expires_ms = 0").await;
    assert!(renew(&f.store, "one", epoch, TTL, "{}").await);
    assert_eq!(holder(&f.store, "two").await.0, "one");
}

async fn an_owner_takes_its_own_lease_again(f: Fixture) {
    let (epoch, _) = taken(&f.store, "one", TTL).await;
    assert!(renew(&f.store, "one", epoch, TTL, "spent").await);
    let (again, last) = taken(&f.store, "one", TTL).await;
    assert_eq!((again, last.expect("a state").state.as_str()), (epoch + 1, "spent"));
    assert!(!renew(&f.store, "one", epoch, TTL, "late").await);
    assert!(renew(&f.store, "one", again, TTL, "spent").await);
}

async fn what_is_released_is_taken_at_once(f: Fixture) {
    let (epoch, _) = taken(&f.store, "one", TTL).await;
    assert!(renew(&f.store, "one", epoch, TTL, "some").await);
    assert!(release(&f.store, "one", epoch, "all").await);
    let seen = f.store.leases().await.expect("read").pop().expect("one");
    assert_eq!((seen.owner, seen.expires_in, seen.clean), (None, Duration::ZERO, true));
    let (next, last) = taken(&f.store, "two", TTL).await;
    let last = last.expect("a state");
    assert_eq!((next, last.state.as_str(), last.clean), (epoch + 1, "all", true));
    assert!(last.saved_ago < SOON);
}

async fn releasing_wakes_those_who_wait(f: Fixture) {
    let second = f.another().await;
    let (mut here, mut there) = (f.store.wakes(), second.wakes());
    let woken = Wake::Lease(owner("geo"));
    let (epoch, _) = taken(&f.store, "one", TTL).await;
    assert!(!release(&f.store, "two", epoch, "late").await);
    assert!(renew(&f.store, "one", epoch, TTL, "some").await);
    assert!(here.try_recv().is_err(), "nothing can be taken yet");
    assert!(release(&f.store, "one", epoch, "all").await);
    assert_eq!(tokio::time::timeout(SOON, here.recv()).await.expect("in time").expect("a wake"), woken);
    assert!(here.try_recv().is_err(), "once");
    if !f.is_sqlite() {
        // The listener of the other process may still be connecting: release until it hears.
        let begun = Instant::now();
        while tokio::time::timeout(Duration::from_millis(100), there.recv()).await.is_err() {
            assert!(begun.elapsed() < SOON, "the other process was never woken");
            let (epoch, _) = taken(&f.store, "one", TTL).await;
            assert!(release(&f.store, "one", epoch, "all").await);
        }
        // From here on every release is heard, and what was woken can take it.
        let (epoch, _) = taken(&f.store, "one", TTL).await;
        while there.try_recv().is_ok() {}
        assert!(release(&f.store, "one", epoch, "all").await);
        assert_eq!(tokio::time::timeout(SOON, there.recv()).await.expect("in time").expect("a wake"), woken);
        assert!(taken(&second, "two", TTL).await.1.expect("a state").clean);
    }
    second.close().await;
}

async fn renewing_and_taking_end_a_clean_state(f: Fixture) {
    taken(&f.store, "one", TTL).await;
    assert!(release(&f.store, "one", 1, "all").await);
    assert!(taken(&f.store, "two", TTL).await.1.expect("a state").clean);
    assert!(!f.store.leases().await.expect("read")[0].clean, "it is in use");
    f.execute("UPDATE leases SET expires_ms = 0").await;
    let last = taken(&f.store, "three", TTL).await.1.expect("a state");
    assert_eq!((last.state.as_str(), last.clean), ("all", false), "nobody knows what the second one did");
    f.execute("UPDATE leases SET clean = (1 = 1)").await;
    assert!(renew(&f.store, "three", 3, TTL, "some").await);
    assert!(!f.store.leases().await.expect("read")[0].clean);
}

async fn a_large_state_comes_back_as_it_was(f: Fixture) {
    let state: String = (0..2 * 1024 * 1024u32).map(|n| char::from(b' ' + (n.wrapping_mul(n) % 89) as u8)).collect();
    let (epoch, _) = taken(&f.store, "one", TTL).await;
    for _ in 0..3 {
        assert!(renew(&f.store, "one", epoch, TTL, &state).await);
    }
    f.execute("UPDATE leases SET expires_ms = 0").await;
    assert!(taken(&f.store, "two", TTL).await.1.expect("a state").state == state, "renewed");
    let other = state.replace('a', "é");
    assert!(release(&f.store, "two", epoch + 1, &other).await);
    assert!(taken(&f.store, "three", TTL).await.1.expect("a state").state == other, "released");
}

/// No time of the caller comes in. On SQLite the database's clock is the process's own.
async fn times_are_those_of_the_database(f: Fixture) {
    let times = async |columns: &str| f.number(&format!("SELECT {columns} FROM leases")).await;
    let before = database_ms(&f).await;
    taken(&f.store, "one", TTL).await;
    let after = database_ms(&f).await;
    let at = times("taken_ms").await;
    assert!((before..=after).contains(&at));
    assert!((at..=after).contains(&times("renewed_ms").await));
    assert!((at..=after).contains(&(times("expires_ms").await - 60_000)));
    let before = database_ms(&f).await;
    assert!(renew(&f.store, "one", 1, TTL, "{}").await);
    let after = database_ms(&f).await;
    assert!((before..=after).contains(&times("renewed_ms").await));
    assert!((before..=after).contains(&(times("expires_ms").await - 60_000)));
    assert_eq!(times("taken_ms").await, at);
    assert!(release(&f.store, "one", 1, "{}").await);
    let now = database_ms(&f).await;
    assert!((after..=now).contains(&times("renewed_ms").await) && (after..=now).contains(&times("expires_ms").await));
}

async fn a_clock_that_is_set_back_gives_no_negative_times(f: Fixture) {
    taken(&f.store, "one", TTL).await;
    assert!(renew(&f.store, "one", 1, TTL, "{}").await);
    f.execute("UPDATE leases SET renewed_ms = renewed_ms + 3600000, expires_ms = 0").await;
    assert_eq!(f.store.leases().await.expect("read")[0].expires_in, Duration::ZERO);
    assert_eq!(taken(&f.store, "two", Duration::MAX).await.1.expect("a state").saved_ago, Duration::ZERO);
    assert!(holder(&f.store, "three").await.1 > Duration::from_secs(86_400 * 365));
}

/// Neither the orderly end of an owner nor its death lets go of its leases.
async fn only_owners_release(f: Fixture) {
    f.store.heartbeat(&owner("one"), "dispatcher").await.expect("it lives");
    taken(&f.store, "one", TTL).await;
    assert!(renew(&f.store, "one", 1, TTL, "some").await);
    let before = row(&f).await;
    f.execute("UPDATE owners SET seen_ms = 0").await;
    f.store.rescue(Duration::from_secs(1), 0).await.expect("rescued");
    f.store.retire(&owner("one"), 0).await.expect("retired");
    f.store.retain(i64::MAX, i64::MAX, 1000).await.expect("retention");
    assert_eq!(row(&f).await, before);
    assert_eq!(holder(&f.store, "two").await.0, "one");
    assert!(release(&f.store, "one", 1, "all").await, "after it retired, too");
}

async fn a_thousand_groups_are_one_matter(f: Fixture) {
    let names: Vec<String> = (0..1_000).map(|n| format!("k{n}")).collect();
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    let take = async |who: &str, asked: &[&str]| {
        f.store.leases_take("geo", asked, &names, &owner(who), TTL).await.expect("asked").answers
    };
    let new = LeaseTake::Taken { epoch: 1, last: None };
    assert_eq!(take("one", &asked[..600]).await, vec![new.clone(); 600]);
    let held = |answer: &LeaseTake| matches!(answer, LeaseTake::Held { owner, .. } if owner == "one");
    let answers = take("two", &["k999", "k0", "k998", "k1"]).await;
    assert!(answers[0] == new && held(&answers[1]) && answers[2] == new && held(&answers[3]), "{answers:?}");
    // In any order; of those that are not one's own nothing is changed.
    let mut writes: Vec<LeaseWrite> = names[..600].iter().map(|name| write(name, 1, name)).collect();
    writes.reverse();
    writes.insert(7, write("k999", 1, "late"));
    let renewed = f.store.leases_renew("geo", &owner("one"), TTL, &writes).await.expect("asked");
    let lost =
        |answers: &[bool]| answers.iter().enumerate().filter(|(_, ok)| !**ok).map(|(n, _)| n).collect::<Vec<_>>();
    assert_eq!((renewed.len(), lost(&renewed)), (601, vec![7]));
    let released = f.store.leases_release("geo", &owner("one"), &writes).await.expect("asked");
    assert_eq!((released.len(), lost(&released)), (601, vec![7]));
    assert_eq!(f.number("SELECT COUNT(*) FROM leases WHERE clean AND state = name").await, 600);
    let answers = take("two", &asked).await;
    assert!(answers.iter().all(|answer| matches!(answer, LeaseTake::Taken { .. })));
    let LeaseTake::Taken { epoch: 2, last: Some(last) } = &answers[17] else { panic!("{:?}", answers[17]) };
    assert!(last.state == "k17" && last.clean);
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

async fn groups_of_another_configuration_are_waited_for_and_inherited(f: Fixture) {
    let (whole, single) = (names(&[""]), names(&["a", "b"]));
    let take = async |who: &str, asked: &[&str], groups: &[String]| {
        f.store.leases_take("geo", asked, groups, &owner(who), TTL).await.expect("asked")
    };
    assert_eq!(take("old", &[""], &whole).await.answers, [LeaseTake::Taken { epoch: 1, last: None }]);
    let all = [write("", 1, "of all")];
    assert_eq!(f.store.leases_renew("geo", &owner("old"), TTL, &all).await.expect("asked"), [true]);
    let before = row(&f).await;
    let refused = take("new", &["a", "b"], &single).await;
    let held = |answer: &LeaseTake| matches!(answer, LeaseTake::Held { owner, .. } if owner == "old");
    assert!(refused.answers.len() == 2 && refused.answers.iter().all(held), "{refused:?}");
    assert_eq!(row(&f).await, before, "asking changes nothing");
    assert_eq!(f.store.leases_release("geo", &owner("old"), &all).await.expect("asked"), [true]);
    let taken = take("new", &["a"], &single).await;
    assert_eq!(taken.answers, [LeaseTake::Taken { epoch: 1, last: None }]);
    let left: Vec<_> = taken.left.iter().map(|left| (left.state.as_str(), left.clean)).collect();
    assert_eq!(left, [("of all", true)]);
    // Now it is the other way round; what died is told from what was let go of.
    let one = [write("a", 1, "of a")];
    assert_eq!(f.store.leases_renew("geo", &owner("new"), TTL, &one).await.expect("asked"), [true]);
    assert!(matches!(&take("old", &[""], &whole).await.answers[..], [LeaseTake::Held { owner, .. }] if owner == "new"));
    f.execute("UPDATE leases SET expires_ms = 0 WHERE name = 'a'").await;
    f.execute("UPDATE leases SET renewed_ms = renewed_ms - 1000 WHERE name = ''").await;
    let taken = take("old", &[""], &whole).await;
    let [LeaseTake::Taken { epoch: 2, last: Some(last) }] = &taken.answers[..] else { panic!("{taken:?}") };
    assert!(last.state == "of all" && last.clean);
    let left: Vec<_> = taken.left.iter().map(|left| (left.state.as_str(), left.clean)).collect();
    assert_eq!(left, [("of a", false)]);
    assert!(taken.left[0].saved_ago < last.saved_ago, "which one is later can be told");
}

/// Both kinds are taken at once, again and again: whoever is let in, is alone.
async fn two_configurations_never_hold_at_once(f: Fixture) {
    let second = f.another().await;
    let (mut let_in, mut unanswered) = (0, 0);
    for round in 0..30 {
        let takers = (0..6).map(|n| {
            let store = if n % 2 == 0 { f.store.clone() } else { second.clone() };
            let (asked, groups) =
                if n % 3 == 0 { (vec![""], names(&[""])) } else { (vec!["a", "b"], names(&["a", "b"])) };
            let who = owner(&format!("r{round}d{n}"));
            tokio::spawn(async move {
                let taken = store.leases_take("geo", &asked, &groups, &who, TTL).await?;
                let took = taken.answers.iter().any(|answer| matches!(answer, LeaseTake::Taken { .. }));
                Ok::<_, StoreError>(took.then_some(asked.len()))
            })
        });
        let mut kinds = Vec::new();
        for answer in join_all(takers).await {
            match answer.expect("no panic") {
                Ok(kind) => kinds.extend(kind),
                // A machine may be that busy; then nobody knows what it holds.
                Err(StoreError::Unavailable(_)) => unanswered += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(kinds.windows(2).all(|kinds| kinds[0] == kinds[1]), "{kinds:?} at once");
        let_in += usize::from(!kinds.is_empty());
        // Who was not let in holds nothing either.
        let kind = "SELECT DISTINCT CASE WHEN name = '' THEN '1' ELSE '2' END FROM leases WHERE owner IS NOT NULL";
        let live: Vec<usize> = f.texts(kind).await.iter().map(|kind| kind.parse().expect("a number")).collect();
        kinds.truncate(1);
        assert!(live == kinds || unanswered > 0, "{live:?} {kinds:?}");
        f.execute("UPDATE leases SET owner = NULL, expires_ms = 0").await;
    }
    assert!(let_in > 0 || unanswered > 0, "somebody is let in now and then");
    second.close().await;
}

async fn a_look_shows_who_holds_what_and_who_lives(f: Fixture) {
    let fresh = Duration::from_secs(6);
    let look = async || f.store.lease_survey("geo", fresh).await.expect("read");
    assert_eq!(look().await, LeaseSurvey::default());
    let mut wakes = f.store.wakes();
    f.store.announce_dispatcher("geo", &owner("one"), "s1").await.expect("announced");
    assert_eq!(tokio::time::timeout(SOON, wakes.recv()).await.expect("in time"), Ok(Wake::Lease(owner("geo"))));
    f.store.announce_dispatcher("geo", &owner("one"), "s1").await.expect("again");
    assert!(wakes.try_recv().is_err(), "that is no news");
    f.store.announce_dispatcher("geo", &owner("two"), "s1").await.expect("announced");
    f.store.announce_dispatcher("geo", &owner("two"), "s2").await.expect("with other groups");
    f.store.announce_dispatcher("other", &owner("three"), "s1").await.expect("announced");
    let alive = |survey: &LeaseSurvey| {
        survey.dispatchers.iter().map(|d| format!("{} {}", d.owner, d.structure)).collect::<Vec<_>>()
    };
    assert_eq!(alive(&look().await), ["one s1", "two s2"]);
    f.execute("UPDATE owners SET seen_ms = seen_ms - 7000 WHERE id = 'two'").await;
    assert_eq!(alive(&look().await), ["one s1"], "its heartbeat is missing");
    f.store.heartbeat(&owner("two"), "dispatcher").await.expect("it is back");
    assert_eq!(alive(&look().await), ["one s1", "two s2"]);
    f.store.withdraw_dispatcher("geo", &owner("one")).await.expect("withdrawn");
    f.store.retire(&owner("two"), 0).await.expect("retired");
    assert_eq!(alive(&look().await), [""; 0]);
    assert_eq!(f.number("SELECT COUNT(*) FROM dispatchers").await, 1, "of another provider");
    taken(&f.store, "one", TTL).await;
    let [held] = &look().await.leases[..] else { panic!("one lease") };
    assert_eq!((held.name.as_str(), held.owner.as_deref()), ("a", Some("one")));
    assert!(held.expires_in > TTL - SOON && held.expires_in <= TTL);
    f.execute("UPDATE leases SET expires_ms = 0").await;
    let [ran_out] = &look().await.leases[..] else { panic!("one lease") };
    assert_eq!((ran_out.owner.as_deref(), ran_out.expires_in), (Some("one"), Duration::ZERO));
    assert!(renew(&f.store, "one", 1, TTL, "some").await);
    assert!(release(&f.store, "one", 1, "all").await);
    let [free] = &look().await.leases[..] else { panic!("one lease") };
    assert_eq!((&free.owner, free.expires_in), (&None, Duration::ZERO));
}

async fn what_is_pinned_to_what_others_pace_is_left_to_them(f: Fixture) {
    let text =
        "[[provider]]\nname = \"geo\"\nbase_url = \"http://x\"\nkeys = [ { label = \"k1\", secret = \"env:S\" } ]";
    let config = paceline::config::Config::parse(text, None, &[("S".to_owned(), "s".to_owned())]).expect("valid");
    let catalog = config.catalog();
    let job = |id: &str, pin: Option<&str>| {
        let envelope = format!(r#"{{"id":"{id}","provider":"geo","request":{{"path":"/"}}}}"#);
        let mut job = Job::parse(envelope.as_bytes(), &Given::default(), &catalog).expect("valid");
        job.key = pin.map(str::to_owned);
        NewJob { job, origin: Origin::default(), owner: None }
    };
    // The oldest first: each was due a millisecond later.
    for (due, (id, pin)) in (0..).zip([("1", Some("k1")), ("2", Some("b1")), ("3", None), ("4", Some("gone"))]) {
        f.store.insert(vec![job(id, pin)], 1_000 + due).await.expect("let in");
    }
    let me = owner("me");
    let away = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Arc<[String]>>();
    let claim = async |away: &Arc<[String]>| {
        let claimed = f.store.claim_due_but(&me, "geo", "default", away, 9, 2_000).await.expect("claimed");
        claimed.into_iter().map(|claimed| claimed.job.id).collect::<Vec<_>>()
    };
    let others = away(&["b1", "k1", "k2"]);
    assert_eq!(f.store.next_due_but("geo", "default", &others).await.expect("read"), Some(1_002));
    assert_eq!(claim(&others).await, ["3", "4"], "a pin that nobody knows goes to anybody");
    assert_eq!(f.store.next_due_but("geo", "default", &others).await.expect("read"), None);
    assert_eq!(f.store.next_due("geo", "default").await.expect("read"), Some(1_000));
    assert_eq!(claim(&away(&["b1"])).await, ["1"]);
    assert_eq!(claim(&away(&[])).await, ["2"]);
}

/// Every call at once.
async fn ask_everything(store: &Store) -> Vec<StoreError> {
    let me = owner("one");
    let (groups, late) = (groups(), [write("a", 1, "late")]);
    let (taken, renewed, released, surveyed, listed) = tokio::join!(
        store.leases_take("geo", &["a"], &groups, &me, TTL),
        store.leases_renew("geo", &me, TTL, &late),
        store.leases_release("geo", &me, &late),
        store.lease_survey("geo", TTL),
        store.leases()
    );
    let (announced, withdrawn) =
        tokio::join!(store.announce_dispatcher("geo", &me, "s"), store.withdraw_dispatcher("geo", &me));
    let errors = [taken.err(), renewed.err(), released.err(), surveyed.err(), listed.err(), announced.err()];
    errors.into_iter().chain([withdrawn.err()]).flatten().collect()
}

async fn a_closed_store_is_not_available(f: Fixture) {
    let second = f.another().await;
    second.close().await;
    let refused = ask_everything(&second).await;
    assert!(refused.len() == 7 && refused.iter().all(|e| matches!(e, StoreError::Unavailable(_))), "{refused:?}");
}

// What only one of them has.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_store_takes_a_lease_of_others_at_once() {
    common::on_sqlite(true, async |f: Fixture| {
        let dead_process = f.another().await;
        assert_eq!(taken(&dead_process, "before the crash", TTL).await, (1, None));
        assert!(renew(&dead_process, "before the crash", 1, TTL, "spent").await);
        dead_process.close().await;
        let (epoch, last) = taken(&f.store, "me", TTL).await;
        let last = last.expect("a state");
        assert_eq!((epoch, last.state.as_str(), last.clean), (2, "spent", false));
        assert_eq!(holder(&f.store, "another one of this process").await.0, "me", "who lives here is not replaced");
        assert!(renew(&f.store, "me", 2, TTL, "spent").await);
    })
    .await;
}

/// A queue of writes is passed: a lease waits for the transaction that is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_does_not_wait_behind_the_queue_of_the_writer() {
    common::on_sqlite(true, async |f: Fixture| {
        let message = || Buried {
            reason: DeadReason::Malformed,
            error: "odd".to_owned(),
            tenant: String::new(),
            provider: None,
            lane: None,
            raw: vec![b'x'; 64 * 1024].into(),
            headers: "{}".to_owned(),
            identity: None,
        };
        taken(&f.store, "me", TTL).await;
        let (count, (sender, mut answers)) = (2000, tokio::sync::mpsc::unbounded_channel());
        for _ in 0..count {
            let (store, sender, message) = (f.store.clone(), sender.clone(), message());
            tokio::spawn(async move { sender.send(store.bury(message, 1).await.is_ok()).expect("somebody counts") });
        }
        assert_eq!(answers.recv().await, Some(true), "the writer is at work");
        assert!(renew(&f.store, "me", 1, TTL, "{}").await);
        let answered = answers.len() + 1;
        assert!(answered < count / 2, "{answered} of {count} were written first");
        for _ in 1..count {
            assert_eq!(answers.recv().await, Some(true));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_another_process_writes_to_fails_leases_in_time() {
    common::on_sqlite(false, async |f: Fixture| {
        taken(&f.store, "one", TTL).await;
        assert!(renew(&f.store, "one", 1, TTL, "before").await);
        let connect = sqlx::sqlite::SqliteConnectOptions::new();
        let path = f.options.url.strip_prefix("sqlite://").expect("a path");
        let other = sqlx::SqlitePool::connect_with(connect.filename(path)).await.expect("another process");
        let tx = other.begin_with("BEGIN IMMEDIATE").await.expect("it writes");
        assert_eq!(holder(&f.store, "two").await.0, "one", "reading goes on");
        let begun = Instant::now();
        let late = f.store.leases_renew("geo", &owner("one"), TTL, &[write("a", 1, "late")]).await;
        assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
        assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
        tx.rollback().await.expect("done");
        other.close().await;
        assert!(renew(&f.store, "one", 1, TTL, "after").await, "it goes on by itself");
        assert_eq!(f.texts("SELECT state FROM leases").await, ["after"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_fails_leases_soon() {
    common::on_postgres(async |f: Fixture| {
        taken(&f.store, "one", TTL).await;
        assert!(renew(&f.store, "one", 1, TTL, "before").await);
        let name = f.texts("SELECT current_database()::text").await.remove(0);
        let open = |yes: bool| format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {yes}");
        common::administer(open(false)).await;
        f.number("SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'paceline'").await;
        let begun = Instant::now();
        let refused = ask_everything(&f.store).await;
        assert!(refused.len() == 7 && refused.iter().all(|e| matches!(e, StoreError::Unavailable(_))), "{refused:?}");
        assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
        common::administer(open(true)).await;
        assert!(renew(&f.store, "one", 1, TTL, "after").await);
    })
    .await;
}

/// The first renewal hangs in the database until the second one is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_was_given_up_on_does_not_undo_a_later_one() {
    common::on_postgres(async |f: Fixture| {
        taken(&f.store, "one", TTL).await;
        f.execute("CREATE SEQUENCE updates").await;
        f.execute(
            "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF nextval('updates') = 1 THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NULL; END $$",
        )
        .await;
        f.execute("CREATE TRIGGER hang BEFORE UPDATE ON leases FOR EACH STATEMENT EXECUTE FUNCTION hang()").await;
        let mut other = sqlx::PgConnection::connect(&f.options.url).await.expect("connected");
        sqlx::query("SELECT pg_advisory_lock(7)").execute(&mut other).await.expect("locked");
        let begun = Instant::now();
        let late = f.store.leases_renew("geo", &owner("one"), TTL, &[write("a", 1, "given up on")]).await;
        assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
        assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
        let under_way = "SELECT COUNT(*) FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'active' AND query LIKE '%UPDATE leases%' AND pid <> pg_backend_pid()";
        assert_eq!(f.number(under_way).await, 1, "it hangs still");
        assert!(renew(&f.store, "one", 1, TTL, "second").await);
        sqlx::query("SELECT pg_advisory_unlock(7)").execute(&mut other).await.expect("unlocked");
        while f.number(under_way).await > 0 {
            assert!(begun.elapsed() < SOON);
        }
        assert_eq!(f.texts("SELECT state FROM leases").await, ["second"]);
        other.close().await.expect("closed");
    })
    .await;
}

/// The database's clock is a year ahead of the processes'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_the_processes_does_not_count() {
    common::on_postgres(async |f: Fixture| {
        f.execute(
            "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql
             AS $$ SELECT pg_catalog.clock_timestamp() + INTERVAL '365 days' $$",
        )
        .await;
        let name = f.texts("SELECT current_database()::text").await.remove(0);
        common::administer(format!("ALTER DATABASE {name} SET search_path TO public, pg_catalog")).await;
        let (one, two) = (f.another().await, f.another().await);
        taken(&one, "one", TTL).await;
        let ahead =
            "SELECT expires_ms - CAST(EXTRACT(EPOCH FROM pg_catalog.clock_timestamp()) * 1000 AS BIGINT) FROM leases";
        assert!(f.number(ahead).await > 364 * 86_400_000, "the database's clock was read");
        let (who, expires_in) = holder(&two, "two").await;
        assert!(who == "one" && expires_in <= TTL && expires_in > TTL - SOON, "{expires_in:?}");
        assert!(renew(&one, "one", 1, SHORT, "some").await);
        let (epoch, last) = taken_when_free(&two, "two", "one").await;
        let saved_ago = last.expect("a state").saved_ago;
        assert!(epoch == 2 && saved_ago >= SHORT && saved_ago < SHORT + SOON, "{saved_ago:?}");
        assert!(release(&two, "two", 2, "all").await);
        assert!(taken(&one, "one", TTL).await.1.expect("a state").clean);
        one.close().await;
        two.close().await;
    })
    .await;
}
