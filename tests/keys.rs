//! Provider keys that change while running: stored encrypted, in effect within seconds in every dispatcher, and never
//! opened by anything but their own master key in their own place.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use common::store::{Fixture, on_postgres, on_sqlite};
use common::world::{Mode, Serve, World, free_port, in_world};
use common::{SOON, holds, until};
use http::{HeaderMap, StatusCode};
use paceline::secrets::Secret;
use paceline::sim::{Lognormal, ProviderHandle, ProviderOptions, ProviderSim, Rule, SimKey};
use paceline::store::{
    By, EndpointSecrets, GivenSecret, KeyAct, KeyRefused, NewEndpoint, NewKey, OlderSecret, Registered, Rotated,
    SecretVersion, StoredKey, Subscribe,
};
use paceline::vault::{MasterKeys, VaultError};
use paceline::webhook::{Keyring, WebhookSecrets};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

const NOW: i64 = 1_800_000_000_000;
/// In effect within this time, also where a wake was lost.
const EFFECT: Duration = Duration::from_secs(8);

/// Runs a contract on both databases.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::on_sqlite(false, super::$name).await; })* }
        mod postgres { $(#[tokio::test] async fn $name() { super::on_postgres(super::$name).await; })* }
    };
}

on_both!(
    a_stored_key_opens_with_its_master_key_alone,
    a_row_that_was_moved_or_put_back_does_not_open,
    a_wrong_or_missing_master_key_changes_nothing,
    all_keys_are_encrypted_anew_or_none,
    the_same_secret_is_not_counted_twice,
    a_removed_key_keeps_its_place,
    of_many_who_add_a_key_one_does,
    every_act_is_written_down_without_its_secret,
    what_an_endpoint_is_given_is_sealed_with_the_master_key,
    what_was_sealed_without_a_master_key_opens_on_and_is_sealed_anew,
    secrets_of_endpoints_need_their_own_master_key,
    what_was_done_is_kept_within_bounds,
);

/// Base64 of 32 times that byte.
fn master(byte: u8) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode([byte; 32])
}

/// The current master key, and the one before.
fn masters(current: Option<u8>, previous: Option<u8>) -> MasterKeys {
    let vars = [("PACELINE_MASTER_KEY", current), ("PACELINE_MASTER_KEY_PREVIOUS", previous)];
    MasterKeys::from_env(&|name| vars.iter().find(|(known, _)| *known == name).and_then(|(_, byte)| byte.map(master)))
        .expect("master keys")
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

fn act<'a>(masters: &'a MasterKeys, label: &'a str) -> KeyAct<'a> {
    KeyAct { provider: "geo", label, by: "ops", masters, now_ms: NOW }
}

async fn add(f: &Fixture, masters: &MasterKeys, label: &str, text: &str) -> Result<StoredKey, KeyRefused> {
    let secret = secret(text);
    f.store.add_key(act(masters, label), NewKey { secret: &secret, weight: 1, budget: None }).await.expect("asked")
}

async fn rotate(f: &Fixture, masters: &MasterKeys, label: &str, text: &str) -> Result<StoredKey, KeyRefused> {
    f.store.rotate_key(act(masters, label), &secret(text)).await.expect("asked")
}

const OPS: By<'_> = By { who: "ops", now_ms: NOW };

/// With nothing to open what was sealed without a master key.
async fn rekey(f: &Fixture, masters: &MasterKeys) -> Result<u64, KeyRefused> {
    f.store.rekey(masters, &|_, _| None, OPS).await.expect("asked")
}

async fn stored(f: &Fixture, label: &str) -> StoredKey {
    let keys = f.store.stored_keys(Some("geo")).await.expect("listed");
    keys.into_iter().find(|key| key.label == label).unwrap_or_else(|| panic!("no key {label}"))
}

async fn opened(f: &Fixture, masters: &MasterKeys, label: &str) -> Result<Option<String>, VaultError> {
    stored(f, label).await.open(masters).map(|secret| secret.map(|secret| secret.expose().to_owned()))
}

async fn a_stored_key_opens_with_its_master_key_alone(f: Fixture) {
    let (one, two) = (masters(Some(1), None), masters(Some(2), None));
    let key = add(&f, &one, "a1", "sk-first").await.expect("added");
    assert_eq!((key.version, key.changed_by.as_str()), (1, "ops"));
    assert_eq!(opened(&f, &one, "a1").await, Ok(Some("sk-first".to_owned())));
    assert!(matches!(opened(&f, &two, "a1").await, Err(VaultError::WrongMaster { .. })));
    assert!(matches!(opened(&f, &masters(None, None), "a1").await, Err(VaultError::WrongMaster { .. })));
    assert_eq!(add(&f, &one, "a1", "sk-other").await, Err(KeyRefused::Exists));
    assert_eq!(rotate(&f, &one, "a1", "sk-second").await.expect("rotated").version, 2);
    assert_eq!(opened(&f, &one, "a1").await, Ok(Some("sk-second".to_owned())));
    assert_eq!(rotate(&f, &one, "a2", "sk-third").await, Err(KeyRefused::Missing));
    assert!(f.another().await.stored_keys(Some("other")).await.expect("listed").is_empty());
}

async fn a_row_that_was_moved_or_put_back_does_not_open(f: Fixture) {
    let masters = masters(Some(1), None);
    add(&f, &masters, "a1", "sk-first").await.expect("added");
    add(&f, &masters, "a2", "sk-second").await.expect("added");
    f.execute("CREATE TABLE old AS SELECT sealed FROM vault_keys WHERE label = 'a1'").await;
    rotate(&f, &masters, "a1", "sk-third").await.expect("rotated");
    f.execute("UPDATE vault_keys SET sealed = (SELECT sealed FROM old) WHERE label = 'a1'").await;
    assert!(matches!(opened(&f, &masters, "a1").await, Err(VaultError::Damaged { .. })), "an old secret put back");
    f.execute("UPDATE vault_keys SET sealed = (SELECT sealed FROM old), version = 1 WHERE label = 'a2'").await;
    assert!(matches!(opened(&f, &masters, "a2").await, Err(VaultError::Damaged { .. })), "the secret of another key");
}

async fn a_wrong_or_missing_master_key_changes_nothing(f: Fixture) {
    let right = masters(Some(1), None);
    assert_eq!(add(&f, &masters(None, None), "a1", "sk").await, Err(KeyRefused::Master(VaultError::NoMaster)));
    add(&f, &right, "a1", "sk-first").await.expect("added");
    let before = (stored(&f, "a1").await, f.texts("SELECT master FROM vault_master").await);
    for wrong in [masters(Some(2), None), masters(None, None), masters(Some(2), Some(3))] {
        let refusals = [
            add(&f, &wrong, "a2", "sk-second").await,
            rotate(&f, &wrong, "a1", "sk-second").await,
            rekey(&f, &wrong).await.map(|_| before.0.clone()),
        ];
        for refused in refusals {
            let told = refused.expect_err("refused").to_string();
            assert!(told.contains("PACELINE_MASTER_KEY"), "{told}");
        }
    }
    assert_eq!((stored(&f, "a1").await, f.texts("SELECT master FROM vault_master").await), before);
    assert_eq!(f.number("SELECT COUNT(*) FROM vault_keys").await, 1);
    // Where nothing is left that it opens, any other will do.
    f.store.remove_key(act(&right, "a1")).await.expect("asked").expect("removed, without any master key");
    add(&f, &masters(Some(2), None), "a1", "sk-second").await.expect("added");
}

async fn all_keys_are_encrypted_anew_or_none(f: Fixture) {
    let (old, both, new) = (masters(Some(1), None), masters(Some(2), Some(1)), masters(Some(2), None));
    for n in 0..20 {
        add(&f, &old, &format!("k{n}"), &format!("sk-{n}")).await.expect("added");
    }
    // Until then the old one is written with, so that a process that has only that one opens all of them.
    add(&f, &both, "late", "sk-late").await.expect("added");
    assert_eq!(opened(&f, &old, "late").await, Ok(Some("sk-late".to_owned())));
    let version = stored(&f, "k3").await.version;
    f.execute("CREATE TABLE before AS SELECT label, sealed FROM vault_keys").await;
    f.execute("UPDATE vault_keys SET sealed = (SELECT sealed FROM before WHERE label = 'k1') WHERE label = 'k7'").await;
    assert!(rekey(&f, &both).await.is_err(), "one of them does not open");
    assert_eq!(opened(&f, &old, "k3").await, Ok(Some("sk-3".to_owned())), "so none was changed");
    f.execute("UPDATE vault_keys SET sealed = (SELECT sealed FROM before WHERE label = 'k7') WHERE label = 'k7'").await;
    assert_eq!(rekey(&f, &both).await, Ok(21));
    assert_eq!(rekey(&f, &both).await, Ok(0), "doing it again is safe");
    assert_eq!(rekey(&f, &new).await, Ok(0));
    assert_eq!(opened(&f, &new, "k3").await, Ok(Some("sk-3".to_owned())));
    assert!(opened(&f, &old, "k3").await.is_err());
    assert_eq!(stored(&f, "k3").await.version, version, "no dispatcher has anything to do");
    add(&f, &new, "later", "sk-later").await.expect("added");
    assert!(add(&f, &old, "no", "sk-no").await.is_err());
}

async fn the_same_secret_is_not_counted_twice(f: Fixture) {
    let masters = masters(Some(1), None);
    add(&f, &masters, "a1", "sk-first").await.expect("added");
    add(&f, &masters, "a2", "sk-second").await.expect("added");
    assert_eq!(add(&f, &masters, "a3", "sk-first").await, Err(KeyRefused::SameSecret("a1".to_owned())));
    assert_eq!(rotate(&f, &masters, "a2", "sk-first").await, Err(KeyRefused::SameSecret("a1".to_owned())));
    rotate(&f, &masters, "a1", "sk-first").await.expect("its own");
    f.store.remove_key(act(&masters, "a1")).await.expect("asked").expect("removed");
    let known = add(&f, &masters, "a3", "sk-first").await;
    assert_eq!(known, Err(KeyRefused::SameSecret("a1".to_owned())), "what was spent is kept under that label");
    let other = KeyAct { provider: "other", ..act(&masters, "a1") };
    let new = NewKey { secret: &secret("sk-second"), weight: 1, budget: None };
    f.store.add_key(other, new).await.expect("asked").expect("another provider counts apart");
}

async fn a_removed_key_keeps_its_place(f: Fixture) {
    let masters = masters(Some(1), None);
    let new = NewKey { secret: &secret("sk-first"), weight: 3, budget: Some("org") };
    f.store.add_key(act(&masters, "a1"), new).await.expect("asked").expect("added");
    let removed = f.store.remove_key(act(&masters, "a1")).await.expect("asked").expect("removed");
    assert_eq!((removed.version, &removed.sealed), (2, &None));
    assert_eq!(f.number("SELECT COUNT(*) FROM vault_keys WHERE sealed IS NOT NULL").await, 0, "erased");
    assert_eq!(f.store.remove_key(act(&masters, "a1")).await.expect("asked"), Err(KeyRefused::Missing));
    let elsewhere = NewKey { weight: 3, budget: None, ..new };
    let refused = f.store.add_key(act(&masters, "a1"), elsewhere).await.expect("asked").expect_err("another budget");
    assert!(refused.to_string().contains("the budget org"), "{refused}");
    assert_eq!(f.store.add_key(act(&masters, "a1"), new).await.expect("asked").expect("added").version, 3);
}

async fn of_many_who_add_a_key_one_does(f: Fixture) {
    let (ours, theirs) = (masters(Some(1), None), masters(Some(2), None));
    let others = f.another().await;
    let all = (0..12).map(async |n| {
        let text = secret(&format!("sk-{n}"));
        let (store, masters) = if n % 2 == 0 { (&f.store, &ours) } else { (&others, &theirs) };
        store.add_key(act(masters, "a1"), NewKey { secret: &text, weight: 1, budget: None }).await.expect("asked")
    });
    let answers = futures_util::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    let key = stored(&f, "a1").await;
    assert!(key.open(&ours).is_ok() != key.open(&theirs).is_ok(), "one master key, and the row of it is its own");
    assert_eq!(vec![key.sealed.expect("sealed").master], f.texts("SELECT master FROM vault_master").await);
    others.close().await;
}

async fn every_act_is_written_down_without_its_secret(f: Fixture) {
    let masters = masters(Some(1), None);
    add(&f, &masters, "a1", "sk-first-secret").await.expect("added");
    rotate(&f, &masters, "a1", "sk-second-secret").await.expect("rotated");
    assert!(rotate(&f, &masters, "a2", "sk-third-secret").await.is_err());
    f.store.remove_key(act(&masters, "a1")).await.expect("asked").expect("removed");
    rekey(&f, &masters).await.expect("done");
    let acts = f.store.acts(None, 2).await.expect("listed");
    let rest = f.store.acts(acts.next, 500).await.expect("listed");
    let all: Vec<_> = acts.items.iter().chain(&rest.items).collect();
    let told: Vec<_> = all.iter().map(|a| (a.act.as_str(), a.target.as_str(), a.outcome.as_str())).collect();
    let expected = [
        ("vault.rekey", "vault", "done"),
        ("key.remove", "geo/a1", "done"),
        ("key.rotate", "geo/a2", "refused"),
        ("key.rotate", "geo/a1", "done"),
        ("key.add", "geo/a1", "done"),
    ];
    assert_eq!(told, expected);
    assert!(all.iter().all(|a| a.who == "ops" && a.at_ms == NOW));
    assert!(!format!("{all:?}").contains("-secret"));
    assert_eq!(rest.next, None);
}

const BASE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const GIVEN: [&str; 3] = [
    "whsec_Z2l2ZW4tYnktdGhlLXJlY2VpdmVyLTMyLWJ5dGVzLiE=",
    "whsec_YW5vdGhlciBvbmUgdGhhdCBpcyAzMiBieXRlcyBsb25n",
    "whsec_YSB0aGlyZCBvbmUgdGhhdCBpcyAzMiBieXRlcyBsb25n",
];

fn keyring(masters: &MasterKeys) -> Keyring {
    Keyring::new(WebhookSecrets::new(&secret(BASE)).expect("of the scheme"), Arc::new(masters.clone()))
}

/// Registers an endpoint with a secret that is given, as the API does.
async fn endpoint(f: &Fixture, masters: &MasterKeys, id: &str, text: &str) -> Registered {
    let given = secret(text);
    let current = keyring(masters).version(id, 1, Some(&given)).expect("of the scheme");
    let new = NewEndpoint {
        id: id.to_owned(),
        tenant: String::new(),
        url: "https://user:hunter2@hooks.example/hook?token=hunter2".to_owned(),
        description: None,
        events: None,
        subscribe: Subscribe::All,
        secrets: EndpointSecrets { current, older: Vec::new(), ed25519: true },
    };
    let given = Some(GivenSecret { secret: &given, masters });
    f.store.register_endpoint(&new, given, OPS).await.expect("asked")
}

/// Gives it another one; the one before signs on.
async fn turn(f: &Fixture, masters: &MasterKeys, id: &str, text: &str) -> Rotated {
    let seen = f.store.endpoint(None, id).await.expect("read").expect("it is there");
    let known = seen.secrets.clone().expect("secrets");
    let given = secret(text);
    let current = keyring(masters).version(id, known.current.version + 1, Some(&given)).expect("of the scheme");
    let older = OlderSecret { secret: known.current, until_ms: NOW + 1 };
    let new = EndpointSecrets { current, older: [vec![older], known.older].concat(), ed25519: known.ed25519 };
    let given = Some(GivenSecret { secret: &given, masters });
    f.store.rotate_endpoint(&seen, &new, given, OPS).await.expect("asked")
}

async fn versions(f: &Fixture, id: &str) -> Vec<SecretVersion> {
    let seen = f.store.endpoint(None, id).await.expect("read").expect("it is there").secrets.expect("secrets");
    seen.active(NOW).cloned().collect()
}

/// The secrets that sign for it, newest first, where these master keys open them.
async fn signs(f: &Fixture, masters: &MasterKeys, id: &str) -> Option<Vec<String>> {
    let open = |version: &SecretVersion| Some(keyring(masters).secret(id, version).ok()?.expose().to_owned());
    versions(f, id).await.iter().map(open).collect()
}

fn all(given: &[&str]) -> Option<Vec<String>> {
    Some(given.iter().map(|text| (*text).to_owned()).collect())
}

async fn what_an_endpoint_is_given_is_sealed_with_the_master_key(f: Fixture) {
    let (one, two) = (masters(Some(1), None), masters(Some(2), None));
    assert_eq!(endpoint(&f, &one, "ep_1", GIVEN[0]).await, Registered::Done);
    assert_eq!(turn(&f, &one, "ep_1", GIVEN[1]).await, Rotated::Done);
    assert_eq!(endpoint(&f, &one, "ep_2", GIVEN[2]).await, Registered::Done);
    assert_eq!(signs(&f, &one, "ep_1").await, all(&[GIVEN[1], GIVEN[0]]));
    for wrong in [&two, &masters(None, None)] {
        assert_eq!(signs(&f, wrong, "ep_1").await, None);
    }
    let sealed = versions(&f, "ep_1").await;
    assert!(sealed.iter().all(|version| version.sealed.as_ref().is_some_and(|text| text.starts_with("m1."))));
    // Bound to its endpoint and version: nothing that was moved or put back opens.
    f.execute("UPDATE endpoints SET secrets = (SELECT secrets FROM endpoints WHERE id = 'ep_1') WHERE id = 'ep_2'")
        .await;
    assert_eq!(signs(&f, &one, "ep_2").await, None);
    f.execute("UPDATE endpoints SET secrets = REPLACE(secrets, '\"version\":2', '\"version\":3') WHERE id = 'ep_1'")
        .await;
    assert_eq!(signs(&f, &one, "ep_1").await, None);
    let told = format!("{:?}", f.store.acts(None, 10).await.expect("listed").items);
    assert!(told.contains("https://hooks.example") && told.contains("version 2"), "{told}");
    assert!(!told.contains("hunter2") && !told.contains("whsec_") && !told.contains("m1."), "{told}");
}

async fn what_was_sealed_without_a_master_key_opens_on_and_is_sealed_anew(f: Fixture) {
    let (none, one) = (masters(None, None), masters(Some(1), None));
    let (both, two) = (masters(Some(2), Some(1)), masters(Some(2), None));
    assert_eq!(endpoint(&f, &none, "ep_1", GIVEN[0]).await, Registered::Done);
    assert!(f.store.needed_masters().await.expect("read").endpoints.is_empty());
    // A process that has one by now opens both.
    assert_eq!(turn(&f, &one, "ep_1", GIVEN[1]).await, Rotated::Done);
    assert_eq!(endpoint(&f, &one, "ep_2", GIVEN[2]).await, Registered::Done);
    assert_eq!(signs(&f, &one, "ep_1").await, all(&[GIVEN[1], GIVEN[0]]));
    add(&f, &one, "a1", "sk-first").await.expect("added");
    let anew = async |masters: &MasterKeys| {
        let keyring = keyring(masters);
        let open_old = |id: &str, version: &SecretVersion| keyring.secret(id, version).ok();
        f.store.rekey(masters, &open_old, OPS).await.expect("asked")
    };
    assert_eq!(anew(&one).await, Ok(1), "the one that was sealed without");
    assert_eq!(signs(&f, &one, "ep_1").await, all(&[GIVEN[1], GIVEN[0]]));
    assert_eq!(anew(&both).await, Ok(4), "three of endpoints and a key");
    assert_eq!(anew(&two).await, Ok(0), "doing it again is safe");
    assert_eq!(signs(&f, &two, "ep_1").await, all(&[GIVEN[1], GIVEN[0]]));
    assert_eq!(signs(&f, &two, "ep_2").await, all(&[GIVEN[2]]));
    assert_eq!(signs(&f, &one, "ep_1").await, None);
    // One that does not open: then none is changed.
    let before = f.texts("SELECT secrets FROM endpoints WHERE id = 'ep_2'").await;
    f.execute("UPDATE endpoints SET secrets = REPLACE(secrets, '\"version\":2', '\"version\":9') WHERE id = 'ep_1'")
        .await;
    let refused = anew(&masters(Some(3), Some(2))).await.expect_err("one of them does not open");
    assert!(refused.to_string().contains("ep_1"), "{refused}");
    assert_eq!(f.texts("SELECT secrets FROM endpoints WHERE id = 'ep_2'").await, before);
    assert_eq!(opened(&f, &two, "a1").await, Ok(Some("sk-first".to_owned())));
}

async fn secrets_of_endpoints_need_their_own_master_key(f: Fixture) {
    let (one, none) = (masters(Some(1), None), masters(None, None));
    assert_eq!(endpoint(&f, &one, "ep_1", GIVEN[0]).await, Registered::Done);
    let needed = f.store.needed_masters().await.expect("read");
    let id = one.current().expect("set").id().to_owned();
    assert_eq!((needed.keys.len(), needed.endpoints.iter().collect::<Vec<_>>()), (0, vec![&id]));
    let before = f.texts("SELECT secrets FROM endpoints").await;
    for wrong in [masters(Some(2), None), none] {
        let Registered::NoMaster(error) = endpoint(&f, &wrong, "ep_2", GIVEN[1]).await else { panic!("refused") };
        assert!(error.to_string().contains("PACELINE_MASTER_KEY"), "{error}");
        assert!(matches!(turn(&f, &wrong, "ep_1", GIVEN[1]).await, Rotated::NoMaster(_)));
        assert!(add(&f, &wrong, "a1", "sk").await.is_err(), "keys and endpoints have the same one");
        assert!(rekey(&f, &wrong).await.is_err());
    }
    assert_eq!(f.texts("SELECT secrets FROM endpoints").await, before, "nothing was overwritten");
    assert_eq!(f.texts("SELECT master FROM vault_master").await, [id]);
    let acts = f.store.acts(None, 50).await.expect("listed").items;
    assert_eq!(acts.iter().filter(|act| act.outcome == "refused").count(), 8);
    // Where nothing is left that it opens, any other will do, and none.
    let row = f.store.endpoint(None, "ep_1").await.expect("read").expect("it is there").pk;
    assert!(f.store.delete_endpoint(row, OPS).await.expect("asked"));
    assert_eq!(endpoint(&f, &masters(None, None), "ep_2", GIVEN[1]).await, Registered::Done);
    assert_eq!(endpoint(&f, &masters(Some(2), None), "ep_3", GIVEN[2]).await, Registered::Done);
}

async fn what_was_done_is_kept_within_bounds(f: Fixture) {
    let masters = masters(Some(1), None);
    for n in 0..5 {
        let later = KeyAct { now_ms: NOW + n, ..act(&masters, "a1") };
        f.store.remove_key(later).await.expect("asked").expect_err("there is none");
    }
    assert_eq!(f.store.retain_acts(NOW + 3, 2).await.expect("done"), 2, "bounded");
    assert_eq!(f.store.retain_acts(NOW + 3, 2).await.expect("done"), 1);
    let left: Vec<i64> = f.store.acts(None, 10).await.expect("listed").items.iter().map(|a| a.at_ms).collect();
    assert_eq!(left, [NOW + 4, NOW + 3]);
    // Beyond 100,000 the oldest go, however young they are.
    f.execute("UPDATE audit SET at_ms = 9000000000000").await;
    let first = f.number("SELECT MIN(pk) FROM audit").await;
    match f.is_sqlite() {
        true => f.execute("UPDATE sqlite_sequence SET seq = seq + 100000 WHERE name = 'audit'").await,
        false => f.execute("SELECT setval('audit_pk_seq', 200000)").await,
    };
    f.store.remove_key(act(&masters, "a1")).await.expect("asked").expect_err("there is none");
    assert_eq!(f.store.retain_acts(0, 10).await.expect("done"), 2);
    assert!(f.number("SELECT MIN(pk) FROM audit").await > first);
}

/// A provider that accepts these keys; all of one account share its limit.
async fn provider(keys: Vec<SimKey>, rules: Vec<Rule>) -> ProviderHandle {
    let latency = Some(Lognormal::ms(10, 30));
    let options = ProviderOptions { keys, rules, latency, seed: 7, ..ProviderOptions::default() };
    ProviderSim::start(options).await.expect("a provider")
}

fn job(world: &World, id: &str, more: Value) -> Value {
    let mut job = json!({ "id": id, "provider": world.provider, "request": { "method": "POST", "path": "/ok" } });
    job.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    job
}

fn keys_of(world: &World) -> String {
    format!("/v1/providers/{}/keys", world.provider)
}

async fn key(world: &World, label: &str) -> Value {
    let (status, list) = world.api().get(&keys_of(world)).await;
    assert_eq!(status, 200, "{list}");
    list["items"].as_array().expect("items").iter().find(|key| key["label"] == label).cloned().unwrap_or_default()
}

async fn key_is(world: &World, label: &str, state: &str) {
    until(&format!("{label} is {state}"), SOON, async || holds(key(world, label).await["state"] == state)).await;
}

async fn post_key(world: &World, body: Value) -> Value {
    let (status, answer) = world.api().post(&keys_of(world), &body).await;
    assert_eq!(status, 201, "{answer}");
    answer
}

/// The label of the key that each attempt of a job was made with.
fn used(job: &Value) -> Vec<&str> {
    job["attempts"].as_array().expect("attempts").iter().filter_map(|a| a["key"].as_str()).collect()
}

/// One process, or the API and two dispatchers apart.
async fn start(world: &World) -> Vec<Serve> {
    world.set("PACELINE_MASTER_KEY", &master(1));
    match world.mode {
        Mode::Embedded => vec![world.serving().await],
        Mode::Scaled => {
            world.prepare().await;
            let mut api = world.serve_as("api", &["--role", "api,scheduler"]);
            world.ready(&mut api).await;
            let mut all = vec![api];
            for name in ["dispatcher-1", "dispatcher-2"] {
                world.set("PACELINE__METRICS__LISTEN", &format!("127.0.0.1:{}", free_port()));
                all.push(world.serve_as(name, &["--role", "dispatcher,notifier"]));
            }
            all
        }
    }
}

async fn stop(all: Vec<Serve>) {
    for serve in all.into_iter().rev() {
        serve.stop().await;
    }
}

async fn keys_come_change_and_go(world: &World) {
    let keys = [("a1", "live-key-0001"), ("b1", "live-key-0002"), ("b2", "live-key-0003"), ("b1", "live-key-0004")];
    let sim = provider(keys.iter().map(|(_, text)| SimKey::new(*text, *text)).collect(), Vec::new()).await;
    world.provider(
        &sim.base_url(),
        &[("a1", "live-key-0001")],
        "key_limits = [ { requests = 50, per = \"1s\" } ]\n[[provider.budget]]\nname = \"org\"\n\
         keys = [ { label = \"b2\", secret = \"vault\" } ]",
    );
    let running = start(world).await;
    let api = world.api();
    key_is(world, "b2", "missing").await;
    let unknown = api.post("/v1/jobs", &job(world, "early", json!({ "key": "b1" }))).await;
    assert_eq!(unknown.0, 422, "no such key yet: {}", unknown.1);
    api.accept(&job(world, "waits", json!({ "key": "org" }))).await;
    // One that is in no file, and one that is configured and had no secret.
    let added = post_key(world, json!({ "label": "b1", "secret": "live-key-0002" })).await;
    assert_eq!((&added["state"], &added["version"]), (&json!("stored"), &json!(1)));
    post_key(world, json!({ "label": "b2", "secret": "live-key-0003" })).await;
    api.accept(&job(world, "pinned", json!({ "key": "b1" }))).await;
    for (id, label) in [("pinned", "b1"), ("waits", "b2")] {
        let done = api.job_in_within(id, &["succeeded"], EFFECT + EFFECT).await;
        assert_eq!(used(&done), [label]);
    }
    let sources = [key(world, "a1").await, key(world, "b1").await, key(world, "b2").await];
    assert_eq!(sources.each_ref().map(|key| &key["source"]), ["configuration", "store", "vault"]);
    assert_eq!(sources[1]["fingerprint"].as_str().map(str::len), Some(8), "{}", sources[1]);
    assert_eq!((&sources[1]["fingerprint"], &sources[1]["budget"]), (&added["fingerprint"], &json!("b1")));
    // What is done to a stored key outlives everybody.
    let order = api.post(&format!("{}/b1/disable", keys_of(world)), &json!({})).await;
    assert_eq!(order.0, 200);
    stop(running).await;
    let running = start(world).await;
    key_is(world, "b1", "disabled").await;
    api.post(&format!("{}/b1/enable", keys_of(world)), &json!({})).await;
    api.accept(&job(world, "again", json!({ "key": "b1" }))).await;
    assert_eq!(used(&api.job_in("again", &["succeeded"]).await), ["b1"]);
    // Removed: never sent without a key, and not with the old one.
    let (status, gone) = api.delete(&format!("{}/b1", keys_of(world))).await;
    assert_eq!((status, &gone["state"]), (200, &json!("removed")));
    key_is(world, "b1", "removed").await;
    until("it is out of use", EFFECT, async || {
        let (_, shown) = api.try_get(&format!("/v1/providers/{}", world.provider)).await?;
        holds(shown.to_string().contains("\"state\":\"missing\""))
    })
    .await;
    let arrived = sim.stats().arrivals;
    api.accept(&job(world, "later", json!({ "key": "b1" }))).await;
    api.job_in("later", &["waiting", "queued"]).await;
    post_key(world, json!({ "label": "b1", "secret": "live-key-0004" })).await;
    assert_eq!(used(&api.job_in_within("later", &["succeeded"], EFFECT + EFFECT).await), ["b1"]);
    assert_eq!(sim.stats().arrivals, arrived + 1, "nothing was sent while it had no secret");
    assert!(sim.ledger().iter().all(|call| call.status != Some(401)), "no call without a key, or with a wrong one");
    stop(running).await;
}

#[tokio::test]
async fn keys_come_change_and_go_embedded() {
    in_world(Mode::Embedded, keys_come_change_and_go).await;
}

#[tokio::test]
async fn keys_come_change_and_go_with_two_dispatchers() {
    in_world(Mode::Scaled, keys_come_change_and_go).await;
}

/// Old and new secret are of one account, whose limit the provider counts for both together.
#[tokio::test]
async fn a_rotated_key_drains_and_its_account_stays_within_its_limit() {
    in_world(Mode::Embedded, async |world| {
        let keys = vec![
            SimKey::new("old", "live-key-0001").of_account("acme"),
            SimKey::new("new", "live-key-0002").of_account("acme"),
        ];
        let rule: Rule = "account requests 20/2s sliding_log".parse().expect("a rule");
        let sim = provider(keys, vec![rule]).await;
        world.provider(
            &sim.base_url(),
            &[],
            "limits = []\nkey_limits = [ { requests = 20, per = \"2s\", algorithm = \"sliding_window\" } ]\n\
             counted_within = \"500ms\"\n",
        );
        let running = start(world).await;
        let api = world.api();
        post_key(world, json!({ "label": "a1", "secret": "live-key-0001" })).await;
        key_is(world, "a1", "open").await;
        // Some are under way with the old secret for long.
        for n in 0..5 {
            let slow = json!({ "request": { "method": "POST", "path": "/slow/3000" } });
            api.accept(&job(world, &format!("slow-{n}"), slow)).await;
        }
        sim.wait_arrived(5, SOON).await.expect("they are under way");
        let jobs: Vec<Value> = (0..120).map(|n| job(world, &format!("j{n}"), json!({}))).collect();
        api.accept_all(&jobs).await;
        sim.wait_arrived(40, SOON).await.expect("the old one is in use");
        let (status, rotated) =
            api.post(&format!("{}/a1/rotate", keys_of(world)), &json!({ "secret": "live-key-0002" })).await;
        assert_eq!((status, &rotated["version"]), (200, &json!(2)), "{rotated}");
        world.all_done(125, SOON * 3).await;
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, 125);
        let ledger = sim.ledger();
        assert!(ledger.iter().all(|call| call.status == Some(200)), "no limit was exceeded, and no secret was wrong");
        let last_old = ledger.iter().rposition(|call| &*call.key == "old").expect("it was used");
        let first_new = ledger.iter().position(|call| &*call.key == "new").expect("it was used");
        assert!(last_old < first_new, "none begins with the old one once the new one is in use");
        stop(running).await;
    })
    .await;
}

/// What the provider says of the secret that was replaced is not said of the one that came in its place.
#[tokio::test]
async fn a_late_refusal_of_the_old_secret_does_not_set_the_new_one_aside() {
    in_world(Mode::Embedded, async |world| {
        let (seen, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let (seen_there, go_there) = (Arc::clone(&seen), Arc::clone(&go));
        let provider = Router::new().fallback(async move |headers: HeaderMap| {
            if headers["authorization"] != "Bearer live-key-0001" {
                return StatusCode::OK;
            }
            seen_there.fetch_add(1, Ordering::Relaxed);
            go_there.notified().await;
            StatusCode::UNAUTHORIZED
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, provider).await });
        world.provider(&base, &[], "key_limits = [ { requests = 50, per = \"1s\" } ]\n");
        let running = start(world).await;
        let api = world.api();
        post_key(world, json!({ "label": "a1", "secret": "live-key-0001" })).await;
        key_is(world, "a1", "open").await;
        api.accept(&job(world, "late", json!({}))).await;
        until("it is under way", SOON, async || holds(seen.load(Ordering::Relaxed) == 1)).await;
        api.post(&format!("{}/a1/rotate", keys_of(world)), &json!({ "secret": "live-key-0002" })).await;
        until("the new one is in effect", SOON, async || holds(is_in_effect(&running[0].log(), 2))).await;
        go.notify_one();
        let done = api.job_in("late", &["succeeded"]).await;
        assert_eq!(used(&done), ["a1", "a1"], "{done}");
        assert!(!running[0].log().contains("the provider refuses this key"), "{}", running[0].log());
        stop(running).await;
    })
    .await;
}

/// Whether a dispatcher, not only the API, knows of that version.
fn is_in_effect(log: &str, version: u32) -> bool {
    log.lines().any(|line| line.contains("a stored key is in effect") && line.contains(&format!("version={version}")))
}

#[tokio::test]
async fn a_provider_without_keys_never_sends_without_one_once_it_has_some() {
    in_world(Mode::Embedded, async |world| {
        let sim = provider(Vec::new(), Vec::new()).await;
        world.provider(&sim.base_url(), &[], "key_limits = [ { requests = 50, per = \"1s\" } ]\n");
        let running = start(world).await;
        let api = world.api();
        api.accept(&job(world, "bare", json!({}))).await;
        assert_eq!(used(&api.job_in("bare", &["succeeded"]).await), ["none"]);
        let (status, refused) = api.post(&keys_of(world), &json!({ "label": "none", "secret": "x" })).await;
        assert_eq!((status, &refused["type"]), (409, &json!("urn:paceline:problem:key-conflict")));
        post_key(world, json!({ "label": "a1", "secret": "live-key-0001" })).await;
        key_is(world, "a1", "open").await;
        for n in 0..20 {
            api.accept(&job(world, &format!("j{n}"), json!({}))).await;
            assert_eq!(used(&api.job_in(&format!("j{n}"), &["succeeded"]).await), ["a1"]);
        }
        let (status, _) = api.delete(&format!("{}/a1", keys_of(world))).await;
        assert_eq!(status, 200);
        stop(running).await;
        let running = start(world).await;
        let arrived = sim.stats().arrivals;
        api.accept(&job(world, "keyless", json!({}))).await;
        api.job_in("keyless", &["queued", "waiting"]).await;
        post_key(world, json!({ "label": "a1", "secret": "live-key-0002" })).await;
        assert_eq!(used(&api.job_in("keyless", &["succeeded"]).await), ["a1"]);
        assert_eq!(sim.stats().arrivals, arrived + 1, "nothing was sent without a key meanwhile");
        stop(running).await;
    })
    .await;
}

#[tokio::test]
async fn a_wrong_master_key_is_told_at_the_start_and_nothing_is_overwritten() {
    in_world(Mode::Embedded, async |world| {
        let sim = provider(vec![SimKey::new("a1", "live-key-0001")], Vec::new()).await;
        world.provider(&sim.base_url(), &[], "key_limits = [ { requests = 50, per = \"1s\" } ]\n");
        let running = start(world).await;
        post_key(world, json!({ "label": "a1", "secret": "live-key-0001" })).await;
        stop(running).await;
        let sql = "SELECT master || label FROM vault_keys";
        let before: Vec<(String,)> = world.rows(sql).await;
        for wrong in [Some(master(2)), Some("not a key".to_owned()), None] {
            world.set("PACELINE_MASTER_KEY", wrong.as_deref().unwrap_or_default());
            if wrong.is_none() {
                world.set("PACELINE_MASTER_KEY_FILE", "/does/not/exist");
            }
            let mut refused = world.serve_as("wrong", &[]);
            assert!(!refused.ended(SOON).await.success());
            assert!(refused.log().contains("PACELINE_MASTER_KEY"), "{}", refused.log());
            assert!(!refused.log().contains("not a key"), "{}", refused.log());
        }
        let after: Vec<(String,)> = world.rows(sql).await;
        assert_eq!(before, after);
        // The master key is replaced: both, then rekey, then the new one alone.
        let file = world.path("old-master");
        std::fs::write(&file, master(1)).expect("written");
        world.set("PACELINE_MASTER_KEY_FILE", "");
        world.set("PACELINE_MASTER_KEY", &master(2));
        world.unset("PACELINE_MASTER_KEY_FILE");
        world.set("PACELINE_MASTER_KEY_PREVIOUS_FILE", &file.display().to_string());
        let running = world.serving().await;
        let said = world.run(&["keys", "rekey"]).await;
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        running.stop().await;
        world.unset("PACELINE_MASTER_KEY_PREVIOUS_FILE");
        let running = world.serving().await;
        world.api().accept(&job(world, "still", json!({ "key": "a1" }))).await;
        assert_eq!(used(&world.api().job_in("still", &["succeeded"]).await), ["a1"]);
        running.stop().await;
    })
    .await;
}

/// Where no server runs, the command line opens the store itself; secrets come from anywhere but its arguments.
#[tokio::test]
async fn the_command_line_manages_keys_with_and_without_a_server() {
    in_world(Mode::Embedded, async |world| {
        let secrets = ["live-key-0001", "live-key-0002", "live-key-0003", "live-key-0004"];
        let sim = provider(secrets.map(|text| SimKey::new(text, text)).to_vec(), Vec::new()).await;
        world.provider(&sim.base_url(), &[], "key_limits = [ { requests = 50, per = \"1s\" } ]\n");
        world.set("PACELINE_MASTER_KEY", &master(1));
        let name = world.provider.clone();
        let run = async |arguments: &[&str], input: &str, code: i32| {
            let output = world.run_with(arguments, input.as_bytes()).await;
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            let all = format!("{out}{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
            assert!(secrets.iter().all(|secret| !all.contains(secret)), "{all}");
            out
        };
        let said = run(&["keys", "add", &name, "a1"], "live-key-0001\n", 0).await;
        assert!(said.contains("stored, version 1"), "{said}");
        std::fs::write(world.path("a2"), "live-key-0002").expect("written");
        run(&["keys", "add", &name, "a2", "--secret-file", "a2", "--weight", "2"], "", 0).await;
        run(&["keys", "add", &name, "a2"], "live-key-0009", 5).await;
        run(&["keys", "add", &name, "a4"], "", 2).await;
        run(&["keys", "add", &name, "a4", "on-the-command-line"], "", 2).await;
        run(&["keys", "rotate", &name, "a9"], "live-key-0009", 4).await;
        run(&["keys", "add", &name, "a4", "--budget", "nowhere"], "live-key-0009", 1).await;
        let running = world.serving().await;
        world.set("ROTATED", "live-key-0003");
        run(&["keys", "rotate", &name, "a1", "--secret-env", "ROTATED"], "", 0).await;
        run(&["keys", "add", &name, "a3"], "live-key-0004", 0).await;
        key_is(world, "a3", "open").await;
        let listed: Value = serde_json::from_str(&run(&["--json", "keys", "list"], "", 0).await).expect("JSON");
        let versions: Vec<_> = listed["items"].as_array().expect("items").iter().map(|key| &key["version"]).collect();
        assert_eq!(versions, [2, 1, 1], "{listed:#}");
        let table = run(&["keys", "list", &name], "", 0).await;
        assert!(table.contains("FINGERPRINT") && table.lines().count() == 4, "{table}");
        run(&["keys", "disable", &name, "a2"], "", 0).await;
        run(&["keys", "enable", &name, "a2"], "", 0).await;
        run(&["keys", "remove", &name, "a2"], "", 0).await;
        for label in ["a1", "a3"] {
            world.api().accept(&job(world, label, json!({ "key": label }))).await;
            assert_eq!(used(&world.api().job_in(label, &["succeeded"]).await), [label]);
        }
        running.stop().await;
        let acts: Value = serde_json::from_str(&run(&["--json", "audit", "--limit", "3"], "", 0).await).expect("JSON");
        let seen: Vec<_> = acts["items"].as_array().expect("items").iter().map(|act| &act["act"]).collect();
        assert_eq!(seen, ["key.remove", "key.enable", "key.disable"]);
        let all = run(&["audit", "--all"], "", 0).await;
        assert!(all.contains("command line") && all.contains("local") && all.contains("refused"), "{all}");
    })
    .await;
}
