//! What operators want and what dispatchers report, kept and told alike by both databases.

#[path = "common/store.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::time::Duration;

use common::{Fixture, contract};
use paceline::job::{Catalog, Given, Job, ProviderRules};
use paceline::store::{
    BudgetReport, Claimed, Inserted, JobView, KeyReport, NewJob, Next, Order, Origin, Record, Report, Store, Subject,
    WaitReason, Wake,
};
use serde_json::json;

const NOW: i64 = 1_790_000_000_000;
/// For what must happen, however busy the machine is.
const SOON: Duration = Duration::from_secs(20);

contract! {
    the_last_word_about_each_subject_is_kept
    orders_given_at_once_are_numbered_one_after_the_other
    an_order_wakes_those_who_dispatch
    a_report_is_replaced_taken_back_and_gone_with_its_owner
    a_report_that_cannot_be_read_is_left_out
    what_waits_for_a_key_is_freed_and_nothing_else
    freeing_goes_on_behind_a_full_batch
}

async fn give(store: &Store, subject: Subject, held: bool, by: &str, now_ms: i64) -> Order {
    store.give_order("geo", &subject, held, by, now_ms).await.expect("given")
}

fn key(label: &str) -> Subject {
    Subject::Key(label.to_owned())
}

async fn the_last_word_about_each_subject_is_kept(f: Fixture) {
    let first = give(&f.store, key("a1"), true, "ops", NOW).await;
    let expected =
        Order { provider: "geo".into(), subject: key("a1"), held: true, version: 1, by: "ops".into(), at_ms: NOW };
    assert_eq!(first, expected);
    assert_eq!(give(&f.store, key("a1"), true, "bob", NOW + 5).await, first, "it is held already");
    let freed = give(&f.store, key("a1"), false, "bob", NOW + 9).await;
    assert_eq!((freed.held, freed.version, freed.by.as_str(), freed.at_ms), (false, 2, "bob", NOW + 9));
    let again = give(&f.store, key("a1"), false, "bob", NOW + 10).await;
    assert_eq!(again.version, 3, "more may have been learnt since");
    give(&f.store, Subject::Provider, true, "ops", NOW).await;
    give(&f.store, Subject::Budget("a1".into()), false, "ops", NOW).await;
    f.store.give_order("other", &Subject::Provider, true, "ops", NOW).await.expect("given");
    let kept = f.another().await.orders(Some("geo")).await.expect("read");
    let kept: Vec<_> = kept.iter().map(|order| (order.subject.clone(), order.held, order.version)).collect();
    let expected = [(Subject::Budget("a1".into()), false, 1), (key("a1"), false, 3), (Subject::Provider, true, 1)];
    assert_eq!(kept, expected);
    assert_eq!(f.store.orders(None).await.expect("read").len(), 4);
}

async fn orders_given_at_once_are_numbered_one_after_the_other(f: Fixture) {
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let store = f.store.clone();
            tokio::spawn(async move { give(&store, key("a1"), false, "ops", NOW + n).await.version })
        })
        .collect();
    let mut versions = Vec::new();
    for task in tasks {
        versions.push(task.await.expect("no panic"));
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=16).collect::<Vec<u64>>());
}

async fn an_order_wakes_those_who_dispatch(f: Fixture) {
    let other = f.another().await;
    let (mut here, mut there) = (f.store.wakes(), other.wakes());
    if !f.is_sqlite() {
        // The other one may not listen yet: it says so by what it hears.
        let store = f.store.clone();
        let warm = tokio::spawn(async move {
            loop {
                store.give_order("warm", &Subject::Provider, false, "ops", NOW).await.expect("given");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let heard = async { while there.recv().await.expect("a wake") != Wake::Orders("warm".into()) {} };
        tokio::time::timeout(SOON, heard).await.expect("heard");
        warm.abort();
    }
    give(&f.store, key("a1"), true, "ops", NOW).await;
    let wanted = Wake::Orders("geo".into());
    let mut receivers = vec![&mut here];
    if !f.is_sqlite() {
        receivers.push(&mut there);
    }
    for receiver in receivers {
        let woken = async { while receiver.recv().await.expect("a wake") != wanted {} };
        tokio::time::timeout(SOON, woken).await.expect("woken");
    }
    other.close().await;
}

fn report(used: u64) -> Report {
    let key = KeyReport { label: "a1".into(), state: "refused".into(), until_ms: Some(NOW), ..KeyReport::default() };
    let budget = BudgetReport { name: "a1".into(), pacing_errors: used, keys: vec![key], ..BudgetReport::default() };
    Report { allowed_per_second: Some(10.5), open: 3, budgets: vec![budget], ..Report::default() }
}

async fn a_report_is_replaced_taken_back_and_gone_with_its_owner(f: Fixture) {
    let (one, two) = ("one".to_owned(), "two".to_owned());
    for (owner, used) in [(&one, 1), (&one, 2), (&two, 3)] {
        f.store.write_report("geo", owner, Some(&report(used))).await.expect("written");
    }
    f.store.write_report("other", &one, Some(&report(4))).await.expect("written");
    let read = f.store.reports(Some("geo")).await.expect("read");
    let seen: Vec<_> = read.iter().map(|view| (view.owner.as_str(), view.report.clone())).collect();
    assert_eq!(seen, [("one", report(2)), ("two", report(3))]);
    assert!(read.iter().all(|view| view.age < SOON));
    f.store.write_report("geo", &two, None).await.expect("taken back");
    f.store.retire(&one, NOW).await.expect("retired");
    assert!(f.store.reports(None).await.expect("read").is_empty());
    // A process that died, as another one finds it.
    f.store.write_report("geo", &two, Some(&report(5))).await.expect("written");
    f.execute("DELETE FROM owners").await;
    f.another().await.rescue(Duration::from_secs(15), NOW).await.expect("rescued");
    assert!(f.store.reports(None).await.expect("read").is_empty());
}

async fn a_report_that_cannot_be_read_is_left_out(f: Fixture) {
    let me = "me".to_owned();
    f.store.write_report("geo", &me, Some(&report(1))).await.expect("written");
    f.execute("INSERT INTO reports (provider, owner, written_ms, report) VALUES ('geo', 'odd', 0, '?')").await;
    f.execute("INSERT INTO reports (provider, owner, written_ms, report) VALUES ('geo', 'new', 0, '{\"later\":1}')")
        .await;
    let read = f.store.reports(Some("geo")).await.expect("read");
    assert_eq!(read.iter().map(|view| view.owner.as_str()).collect::<Vec<_>>(), ["me", "new"]);
}

fn catalog() -> Catalog {
    let mut rules = ProviderRules::default();
    rules.pins.extend(["a1".to_owned(), "a2".to_owned()]);
    Catalog {
        providers: [("geo".to_owned(), rules)].into(),
        allow_http: true,
        callbacks: true,
        endpoints: true,
        ..Catalog::default()
    }
}

async fn held(store: &Store, id: &str, pin: Option<&str>) -> Claimed {
    let envelope = json!({ "id": id, "provider": "geo", "request": { "path": "/v1" }, "key": pin });
    let job = Job::parse(envelope.to_string().as_bytes(), &Given::default(), &catalog()).expect("a job");
    let new = NewJob { job, origin: Origin::default(), owner: Some("me".to_owned()) };
    match store.insert(vec![new], NOW).await.expect("inserted").pop() {
        Some(Inserted::Created(Some(claimed))) => claimed,
        other => panic!("expected a claim, got {other:?}"),
    }
}

/// A job that waits for that reason until an hour from now.
async fn waiting(store: &Store, id: &str, pin: Option<&str>, reason: WaitReason, due_ms: i64) {
    let claimed = held(store, id, pin).await;
    let next = Next::Wait { due_ms, reason, backoff: Duration::ZERO };
    let Claimed { pk, epoch, run, failures, .. } = claimed;
    store.record(Record { pk, epoch, run, attempt: None, failures, at_ms: NOW, next }).await.expect("recorded");
}

async fn view(store: &Store, id: &str) -> JobView {
    store.job(None, id).await.expect("read").expect("a job")
}

async fn due_now(store: &Store) -> Vec<String> {
    let claimed = store.claim_due(&"you".to_owned(), "geo", "default", 500, NOW + 1).await.expect("claimed");
    let mut ids: Vec<String> = claimed.into_iter().map(|claimed| claimed.job.id).collect();
    ids.sort_unstable();
    ids
}

async fn what_waits_for_a_key_is_freed_and_nothing_else(f: Fixture) {
    let later = NOW + 3_600_000;
    for (id, pin, reason) in [
        ("free", None, WaitReason::NoKey),
        ("one", Some("a1"), WaitReason::NoKey),
        ("two", Some("a2"), WaitReason::Paused),
        ("backoff", Some("a1"), WaitReason::Backoff),
    ] {
        waiting(&f.store, id, pin, reason, later).await;
    }
    let _in_hand = held(&f.store, "in-hand", Some("a1")).await;
    let pins = ["a1".to_owned(), "org \"1\"".to_owned()];
    let place = ("geo", "default");
    let more = f.store.free_waiting(place, Some(&pins), 0, 100, NOW + 1).await.expect("freed");
    assert_eq!(more, None);
    let freed = view(&f.store, "one").await;
    assert_eq!((freed.state.as_str(), freed.due_ms, freed.waiting_reason), ("queued", None, None));
    assert_eq!(due_now(&f.store).await, ["free", "one"]);
    f.store.free_waiting(place, None, 0, 100, NOW + 1).await.expect("freed");
    assert_eq!(due_now(&f.store).await, ["two"], "whatever it is pinned to");
    assert_eq!(view(&f.store, "backoff").await.due_ms, Some(later));
}

async fn freeing_goes_on_behind_a_full_batch(f: Fixture) {
    for n in 0..7_i64 {
        waiting(&f.store, &format!("j{n}"), Some("a1"), WaitReason::NoKey, NOW + 1_000 * (n + 1)).await;
        waiting(&f.store, &format!("k{n}"), Some("a2"), WaitReason::NoKey, NOW + 1_000 * (n + 1)).await;
    }
    let (pins, mut after, mut batches) = (["a1".to_owned()], Some(0), 0);
    while let Some(after_ms) = after {
        after = f.store.free_waiting(("geo", "default"), Some(&pins), after_ms, 3, NOW + 1).await.expect("freed");
        batches += 1;
    }
    assert_eq!(batches, 3);
    assert_eq!(due_now(&f.store).await, (0..7).map(|n| format!("j{n}")).collect::<Vec<_>>());
}
