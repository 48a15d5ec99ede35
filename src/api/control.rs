//! What can be asked and ordered about providers, their budgets and keys, whoever asks: the routes
//! of the API and the command line go through the same door.
//!
//! Live state comes from the reports of the dispatchers, which may be other processes; what
//! operators ordered is shown from the moment on at which it is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::error::{Problem, ProblemKind};
use super::keys::with_stored;
use super::provider_view::{Known, OrderJson, ProviderJson, QueueJson};
use super::view::PageJson;
use crate::clock::Clock;
use crate::job::{Catalog, ProviderRules};
use crate::store::{LeaseView, Order, ReportView, Store, StoredKey, Subject};
use crate::vault::MasterKeys;
use crate::webhook::Keyring;

/// Jobs are not counted where that would take longer.
const COUNT_WITHIN: Duration = Duration::from_secs(2);

/// Providers, budgets and keys of one system. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(super) store: Store,
    pub(super) catalog: Arc<Catalog>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) masters: Arc<MasterKeys>,
    /// Opens the secrets of endpoints that were sealed without a master key.
    pub(super) hooks: Option<Keyring>,
}

/// Everything that is known at one time, by provider.
#[derive(Default)]
struct Seen {
    /// `None`: not counted in time.
    queues: Option<HashMap<String, BTreeMap<String, QueueJson>>>,
    orders: HashMap<String, Vec<Order>>,
    reports: HashMap<String, Vec<ReportView>>,
    leases: HashMap<String, Vec<LeaseView>>,
    stored: HashMap<String, Vec<StoredKey>>,
}

impl Control {
    /// Of the providers in `catalog`.
    pub fn new(store: Store, catalog: Arc<Catalog>, clock: Arc<dyn Clock>) -> Self {
        Self { store, catalog, clock, masters: Arc::default(), hooks: None }
    }

    /// With what opens stored keys, without which none can be added, and the secrets of endpoints.
    #[must_use]
    pub fn with_masters(self, masters: Arc<MasterKeys>, hooks: Option<Keyring>) -> Self {
        Self { masters, hooks, ..self }
    }

    /// The live state of every configured provider.
    ///
    /// # Errors
    /// Where the store is not available.
    pub async fn providers(&self) -> Result<PageJson<ProviderJson>, Problem> {
        let mut seen = self.look(None).await?;
        let items = self.catalog.providers.iter().map(|(name, rules)| show(name, rules, &mut seen)).collect();
        Ok(PageJson { items, next_cursor: None })
    }

    /// The live state of one provider.
    ///
    /// # Errors
    /// 404 where no such provider is configured.
    pub async fn provider(&self, name: &str) -> Result<ProviderJson, Problem> {
        let rules = self.rules(name)?;
        Ok(show(name, rules, &mut self.look(Some(name)).await?))
    }

    /// Pauses a provider, or lets it go on: nothing is sent to it meanwhile.
    ///
    /// # Errors
    /// 404 where no such provider is configured.
    pub async fn pause(&self, name: &str, paused: bool, by: &str) -> Result<OrderJson, Problem> {
        self.rules(name)?;
        self.order(name, Subject::Provider, paused, by).await
    }

    /// Disables a key, or enables it again: then it is used at once, whatever was learnt of it.
    ///
    /// # Errors
    /// 404 where no such provider or key is configured.
    pub async fn disable_key(&self, name: &str, label: &str, disabled: bool, by: &str) -> Result<OrderJson, Problem> {
        if !self.has_key(name, label).await? {
            let detail = format!("the provider {name} has no key {:?}", shown(label));
            return Err(Problem::new(ProblemKind::NotFound, detail));
        }
        self.order(name, Subject::Key(label.to_owned()), disabled, by).await
    }

    /// Uses a budget again that was paused or parked by what the provider said.
    ///
    /// # Errors
    /// 404 where no such provider or budget is configured.
    pub async fn resume_budget(&self, name: &str, budget: &str, by: &str) -> Result<OrderJson, Problem> {
        let rules = self.rules(name)?;
        let stored = self.store.stored_keys(Some(name)).await?;
        let own = with_stored(rules, &stored).keys.get(budget).is_some_and(Option::is_none);
        let declared = rules.budgets.contains(budget) || rules.keys.values().flatten().any(|known| known == budget);
        if !own && !declared {
            let detail = format!("the provider {name} has no budget {:?}", shown(budget));
            return Err(Problem::new(ProblemKind::NotFound, detail));
        }
        self.order(name, Subject::Budget(budget.to_owned()), false, by).await
    }

    async fn order(&self, name: &str, subject: Subject, held: bool, by: &str) -> Result<OrderJson, Problem> {
        let order = self.store.give_order(name, &subject, held, by, self.clock.wall_ms()).await?;
        // The log is where somebody looks who wonders why nothing is sent.
        let OrderJson { state, .. } = OrderJson::of(&order);
        tracing::info!(provider = name, ?subject, state, by, "an operator gave an order");
        Ok(OrderJson::of(&order))
    }

    async fn has_key(&self, name: &str, label: &str) -> Result<bool, Problem> {
        if self.rules(name)?.keys.contains_key(label) {
            return Ok(true);
        }
        Ok(self.store.stored_keys(Some(name)).await?.iter().any(|key| key.label == label))
    }

    pub(super) fn rules(&self, name: &str) -> Result<&ProviderRules, Problem> {
        self.catalog
            .providers
            .get(name)
            .ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("no provider {:?} is configured", shown(name))))
    }

    async fn look(&self, name: Option<&str>) -> Result<Seen, Problem> {
        let queues = match tokio::time::timeout(COUNT_WITHIN, self.store.queue_depth()).await {
            Ok(counted) => Some(queues(counted?)),
            Err(_) => None,
        };
        Ok(Seen {
            queues,
            orders: by_provider(self.store.orders(name).await?, |order| &order.provider),
            reports: by_provider(self.store.reports(name).await?, |report| &report.provider),
            leases: by_provider(self.store.leases().await?, |lease| &lease.provider),
            stored: by_provider(self.store.stored_keys(name).await?, |key| &key.provider),
        })
    }
}

fn show(name: &str, rules: &ProviderRules, seen: &mut Seen) -> ProviderJson {
    let rules = with_stored(rules, &seen.stored.remove(name).unwrap_or_default()).into_owned();
    ProviderJson::of(Known {
        name,
        rules: &rules,
        queue: seen.queues.as_mut().map(|queues| queues.remove(name).unwrap_or_default()),
        orders: seen.orders.remove(name).unwrap_or_default(),
        reports: seen.reports.remove(name).unwrap_or_default(),
        leases: seen.leases.remove(name).unwrap_or_default(),
    })
}

fn by_provider<T>(items: Vec<T>, provider: impl Fn(&T) -> &String) -> HashMap<String, Vec<T>> {
    let mut grouped: HashMap<String, Vec<T>> = HashMap::new();
    for item in items {
        grouped.entry(provider(&item).clone()).or_default().push(item);
    }
    grouped
}

fn queues(counted: Vec<(String, String, String, i64)>) -> HashMap<String, BTreeMap<String, QueueJson>> {
    let mut queues: HashMap<String, BTreeMap<String, QueueJson>> = HashMap::new();
    for (provider, lane, state, jobs) in counted {
        let queue = queues.entry(provider).or_default().entry(lane).or_default();
        queue.count(&state, jobs);
    }
    queues
}

/// A name that nobody checked, short enough for a message.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}
