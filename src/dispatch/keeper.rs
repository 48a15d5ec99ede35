//! Keeps the dispatcher's leases: looks who holds what, takes its share, renews it with what was spent, gives away what
//! others should have, and hands everything over at the end.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::core::{Event, Heir, Now};
use super::keyring::{self, Read, Versions};
use super::lease::{self, Inherited, Standing};
use super::shell::{Dispatcher, DispatcherParts, Input, send};
use super::strays::adopt_strays;
use super::tenures::Tenures;
use super::view::{Own, View};
use crate::config::Provider;
use crate::kill_point::{KillPoint, reached};
use crate::pace::{GroupId, Measure, Time};
use crate::store::{DispatcherSeen, LeaseSurvey, LeaseTake, LeaseWrite, StoreError};

/// A dispatcher whose heartbeat is older has no share.
const FRESH: Duration = lease::TTL;
/// The ages of two states were read at most so far apart.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Whoever took what others had left over keeps it for so long: they may leave it over again.
const KEEP_LEFT_OVER: Duration = Duration::from_secs(30);

/// The leases of one dispatcher.
#[derive(Debug)]
pub(super) struct Keeping {
    pub tenures: Tenures,
    /// The names of the groups.
    names: Arc<[String]>,
    /// Stands for these names.
    structure: Arc<str>,
    /// What jobs may be pinned to that others pace.
    pub away: Arc<[String]>,
    /// When to look next who holds what.
    look_at: Time,
    /// A look, or the taking that follows from it, is under way.
    looking: bool,
    /// Something happened meanwhile.
    look_again: bool,
    /// The others know that this dispatcher wants its share.
    announced: bool,
    /// Since when each group was seen to be nobody's.
    free_since: Vec<Option<Time>>,
    /// Nothing is given away before.
    keep_until: Time,
    /// Everything is handed over, and nothing is taken any more.
    ending: bool,
    /// Told once.
    renewal_fails: bool,
    waits_told: bool,
}

/// A lease that was taken: its group, its epoch, and what was left of it.
#[derive(Debug)]
pub(super) struct Taken {
    group: GroupId,
    epoch: i64,
    /// `None`: nothing was ever written.
    last: Option<Option<Inherited>>,
}

/// What taking came to.
#[derive(Debug)]
pub(super) struct Takeover {
    taken: Vec<Taken>,
    /// Of groups that are not configured here: what may concern the budgets of those that are.
    left: Vec<Option<Inherited>>,
    /// The stored keys, read after the taking: whoever held these groups before knew no more of them.
    keys: Vec<Read>,
}

/// What the store said about leases.
#[derive(Debug)]
pub(super) enum LeaseInput {
    /// Who holds what.
    Looked(Result<LeaseSurvey, StoreError>),
    /// These were asked for.
    Asked(Vec<GroupId>, Result<Takeover, StoreError>),
    /// These were renewed; `false`: somebody else has it.
    Renewed(Vec<GroupId>, Result<Vec<bool>, StoreError>),
    /// These were let go of.
    Released(Vec<GroupId>, Result<Vec<bool>, StoreError>),
}

impl Keeping {
    /// Nothing is held.
    pub(super) fn new(provider: &Provider) -> Self {
        let names: Arc<[String]> = provider.pool.groups().into();
        Self {
            free_since: vec![None; names.len()],
            tenures: Tenures::new(names.len(), counted(provider)),
            structure: structure_of(&names).into(),
            names,
            away: Arc::default(),
            look_at: Time::ZERO,
            looking: false,
            look_again: false,
            announced: false,
            keep_until: Time::ZERO,
            ending: false,
            renewal_fails: false,
            waits_told: false,
        }
    }

    /// How many groups are held.
    pub(super) fn held(&self) -> u64 {
        self.tenures.that_are(Standing::Held).len() as u64
    }

    /// More groups, at the end: these are all of them. The other dispatchers are told of it.
    pub(super) fn grow(&mut self, names: Vec<String>) {
        self.free_since.resize(names.len(), None);
        self.tenures.grow(names.len());
        self.structure = structure_of(&names).into();
        self.names = names.into();
        self.announced = false;
        self.look_now();
    }

    /// Somebody says that there is something to see.
    pub(super) fn look_now(&mut self) {
        self.look_at = Time::ZERO;
        self.look_again = true;
    }

    /// When there is something to do though nothing happens.
    pub(super) fn wake_at(&self, may_look: bool) -> Option<Time> {
        let look = (may_look && !self.looking && !self.ending).then_some(self.look_at);
        [self.tenures.wake_at(), look].into_iter().flatten().min()
    }

    fn name(&self, group: GroupId) -> &str {
        self.names.get(group.0 as usize).map_or("", String::as_str)
    }
}

impl Dispatcher {
    /// Counts what was sent, renews what is due, lets go of what is given away, and looks who holds what when it is time to.
    pub(super) fn keep_leases(&mut self, now: Now) {
        self.count_sent();
        self.renew(now);
        self.release(now);
        let keeping = &mut self.keeping;
        // A key that an operator disabled must not be used by whoever has not heard of it.
        let may_look = self.orders.are_known() && !keeping.looking && !keeping.ending;
        if may_look && keeping.look_at <= now.mono {
            (keeping.looking, keeping.look_again) = (true, false);
            let announce = (!keeping.announced).then(|| Arc::clone(&keeping.structure));
            let (parts, sender) = (self.parts.clone(), self.sender.clone());
            self.tasks.spawn(async move {
                let looked = look(&parts, announce.as_deref()).await;
                send(&sender, Input::Lease(LeaseInput::Looked(looked)));
            });
        }
    }

    /// What the store said about leases.
    pub(super) fn lease_input(&mut self, input: LeaseInput) {
        // What left meanwhile counts against what was written ahead before.
        self.count_sent();
        match input {
            LeaseInput::Looked(result) => self.looked(result),
            LeaseInput::Asked(groups, result) => self.asked(&groups, result),
            LeaseInput::Renewed(groups, result) => self.renewed(&groups, result),
            LeaseInput::Released(groups, result) => self.released(&groups, result),
        }
    }

    fn count_sent(&mut self) {
        for sent in self.core.take_sent() {
            self.keeping.tenures.sent(sent);
        }
    }

    fn renew(&mut self, now: Now) {
        let renewals = self.keeping.tenures.renewals(now.mono);
        if renewals.is_empty() {
            return;
        }
        let saved = renewals.into_iter().map(|(group, renewal)| {
            let name = self.keeping.name(group).to_owned();
            (group, name, renewal.epoch, self.core.save(group, now.mono), renewal.ahead)
        });
        let saved: Vec<_> = saved.collect();
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let groups = saved.iter().map(|(group, ..)| *group).collect();
            let write = |(_, name, epoch, spent, ahead)| LeaseWrite { name, epoch, state: lease::book(spent, ahead) };
            let writes: Vec<LeaseWrite> = saved.into_iter().map(write).collect();
            let (store, provider) = (&parts.store, &parts.provider.name);
            reached(KillPoint::BeforeRenewal);
            let result = store.leases_renew(provider, &parts.owner, lease::TTL, &writes).await;
            reached(KillPoint::AfterRenewal);
            send(&sender, Input::Lease(LeaseInput::Renewed(groups, result)));
        });
    }

    fn renewed(&mut self, groups: &[GroupId], result: Result<Vec<bool>, StoreError>) {
        let now = self.now();
        let answers = match result {
            Ok(answers) => answers,
            Err(error) => {
                if !std::mem::replace(&mut self.keeping.renewal_fails, true) {
                    let provider = &self.label.provider;
                    tracing::warn!(provider, %error, "the lease cannot be renewed; sending stops when it could be taken");
                }
                return groups.iter().for_each(|group| self.keeping.tenures.not_renewed(*group, now.mono));
            }
        };
        self.keeping.renewal_fails = false;
        let mut lost = Vec::new();
        for (&group, renewed) in groups.iter().zip(answers) {
            if renewed {
                self.keeping.tenures.renewed(group);
                self.core.allow(group, self.keeping.tenures.allowed(group), now.mono);
            } else {
                self.keeping.tenures.lost(group);
                lost.push(group);
            }
        }
        if !lost.is_empty() {
            let provider = &self.label.provider;
            tracing::error!(provider, groups = lost.len(), "another process took the lease over; nothing more is sent");
            self.suspend(lost, now);
            self.keeping.look_now();
        }
    }

    /// Lets go of what is given away, as soon as nothing of it is open.
    fn release(&mut self, now: Now) {
        let releases = self.keeping.tenures.releases(|group| self.core.is_free(group));
        if releases.is_empty() {
            return;
        }
        let (mut groups, mut writes) = (Vec::new(), Vec::new());
        for (group, epoch) in releases {
            let state = lease::book(self.core.save(group, now.mono), lease::Ahead::NOTHING);
            writes.push(LeaseWrite { name: self.keeping.name(group).to_owned(), epoch, state });
            groups.push(group);
        }
        let ending = self.keeping.ending;
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let (store, provider) = (&parts.store, &parts.provider.name);
            if ending {
                reached(KillPoint::BeforeHandOver);
            }
            if ending && let Err(error) = store.withdraw_dispatcher(provider, &parts.owner).await {
                tracing::debug!(provider, %error, "the others count on this process until its heartbeat is missing");
            }
            let result = store.leases_release(provider, &parts.owner, &writes).await;
            if ending {
                reached(KillPoint::AfterHandOver);
            }
            send(&sender, Input::Lease(LeaseInput::Released(groups, result)));
        });
    }

    fn released(&mut self, groups: &[GroupId], result: Result<Vec<bool>, StoreError>) {
        if let Err(error) = result {
            let provider = &self.label.provider;
            tracing::warn!(provider, %error, "the lease was not let go of; the next process waits until it ends");
        }
        groups.iter().for_each(|group| self.keeping.tenures.lost(*group));
    }

    /// Somebody looked who holds what: takes and gives away what follows from it.
    fn looked(&mut self, result: Result<LeaseSurvey, StoreError>) {
        let now = self.now();
        let keeping = &mut self.keeping;
        keeping.looking = false;
        let survey = match result {
            Ok(survey) => survey,
            Err(error) => {
                keeping.announced = false;
                keeping.look_at = now.mono + lease::ASK_EVERY;
                if !std::mem::replace(&mut keeping.waits_told, true) {
                    tracing::warn!(provider = self.label.provider, %error, "the lease cannot be asked for; trying again");
                }
                return;
            }
        };
        keeping.waits_told = false;
        let me = &self.parts.owner;
        let is_me =
            |dispatcher: &DispatcherSeen| dispatcher.owner == *me && *dispatcher.structure == *keeping.structure;
        keeping.announced = survey.dispatchers.iter().any(is_me);
        let own = Own { names: &keeping.names, structure: &keeping.structure, tenures: &keeping.tenures };
        let view = View::of(&own, &survey, me, &mut keeping.free_since, now.mono);
        let mut turn = view.turn(me);
        keeping.look_at = now.mono + view.next_look(&turn);
        if keeping.keep_until > now.mono {
            turn.give.clear();
        }
        if turn.left_over {
            keeping.keep_until = now.mono + KEEP_LEFT_OVER;
        }
        if keeping.look_again {
            keeping.look_at = now.mono;
        }
        if keeping.ending {
            return;
        }
        if view.strangers {
            tracing::debug!(provider = self.label.provider, "a process with other keys or limits dispatches");
            return;
        }
        self.give_away(turn.give.into_iter().map(|number| GroupId(number as u32)).collect(), now);
        self.take_groups(turn.take);
    }

    fn take_groups(&mut self, numbers: Vec<usize>) {
        let free = numbers.into_iter().map(|number| GroupId(number as u32)).filter(|group| self.core.is_free(*group));
        let groups: Vec<GroupId> = free.filter(|group| self.keeping.tenures.ask(*group)).collect();
        if groups.is_empty() {
            return;
        }
        self.keeping.looking = true;
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        let (names, known) = (Arc::clone(&self.keeping.names), self.keyring.versions());
        self.tasks.spawn(async move {
            let asked = ask(&parts, &names, &groups, &known).await;
            if asked.as_ref().is_ok_and(|takeover| !takeover.taken.is_empty()) {
                reached(KillPoint::AfterLeaseTaken);
            }
            send(&sender, Input::Lease(LeaseInput::Asked(groups, asked)));
        });
    }

    fn asked(&mut self, groups: &[GroupId], result: Result<Takeover, StoreError>) {
        let now = self.now();
        self.keeping.looking = false;
        let before = self.keeping.tenures.that_are(Standing::Held).len();
        let mut takeover = match result {
            Ok(takeover) => takeover,
            Err(error) => {
                tracing::warn!(provider = self.label.provider, %error, "the lease cannot be asked for; trying again");
                self.keeping.look_at = now.mono + lease::ASK_EVERY;
                return groups.iter().for_each(|group| self.keeping.tenures.lost(*group));
            }
        };
        if let Some(freed) = self.keys_told(std::mem::take(&mut takeover.keys)) {
            self.free(freed);
        }
        let heirs: Vec<Heir<'_>> = takeover.taken.iter().map(|taken| taken.heir(&takeover.left)).collect();
        self.core.inherit(&heirs, now);
        for Taken { group, epoch, .. } in &takeover.taken {
            self.keeping.tenures.taken(*group, *epoch, now.mono);
        }
        let unclean = heirs.iter().filter(|heir| !heir.is_clean()).count();
        for group in groups {
            if self.keeping.tenures.standing(*group) == Standing::Busy {
                self.keeping.tenures.lost(*group);
            }
        }
        let held = self.keeping.tenures.that_are(Standing::Held).len();
        if held > before {
            let (provider, of) = (&self.label.provider, self.keeping.tenures.len());
            let taken = takeover.taken.len();
            tracing::info!(provider, taken, unclean, held, of, "this process dispatches now");
            self.pins_changed();
        }
        if before == 0 && held > 0 {
            self.tasks.spawn(adopt_strays(self.parts.clone()));
        }
        if self.keeping.ending {
            self.hand_over(now);
        }
    }

    /// Nothing more is sent of these; they are let go of when their calls have ended.
    fn give_away(&mut self, groups: Vec<GroupId>, now: Now) {
        if groups.is_empty() {
            return;
        }
        groups.iter().for_each(|group| self.keeping.tenures.leave(*group));
        let (held, given) = (self.keeping.tenures.that_are(Standing::Held).len(), groups.len());
        let (provider, of) = (&self.label.provider, self.keeping.tenures.len());
        tracing::info!(provider, given, held, of, "other processes dispatch their share from now on");
        self.suspend(groups, now);
    }

    fn suspend(&mut self, groups: Vec<GroupId>, now: Now) {
        self.happened(Event::Suspend(groups), now);
        self.pins_changed();
    }

    /// Other jobs can be claimed than before.
    pub(super) fn pins_changed(&mut self) {
        self.keeping.away = self.core.pins_away().into();
        self.claims.wake_all();
    }

    /// At the end: hands everything over with the state of every limit.
    pub(super) fn hand_over(&mut self, now: Now) {
        self.keeping.ending = true;
        let held = self.keeping.tenures.that_are(Standing::Held);
        held.iter().for_each(|group| self.keeping.tenures.leave(*group));
        self.happened(Event::Suspend(held), now);
    }
}

impl Taken {
    /// What the group begins with: what was left of it, and of groups that are not configured here.
    fn heir<'a>(&'a self, left: &'a [Option<Inherited>]) -> Heir<'a> {
        let last = self.last.as_ref().map(Option::as_ref);
        // Who wrote a later state had taken over what others had written before.
        let since = last.flatten().map_or(Duration::MAX, |last| last.saved_ago).saturating_add(READ_WITHIN);
        let others = left.iter().map(Option::as_ref).filter(|left| left.is_none_or(|left| left.saved_ago <= since));
        let left = last.into_iter().chain(others).map(|inherited| inherited.map(Inherited::left)).collect();
        Heir { group: self.group, left }
    }
}

async fn look(parts: &DispatcherParts, announce: Option<&str>) -> Result<LeaseSurvey, StoreError> {
    let (store, provider) = (&parts.store, &parts.provider.name);
    if let Some(structure) = announce {
        store.announce_dispatcher(provider, &parts.owner, structure).await?;
    }
    store.lease_survey(provider, FRESH).await
}

/// Takes these groups, and reads what was left of them.
async fn ask(
    parts: &DispatcherParts,
    names: &[String],
    groups: &[GroupId],
    known: &Versions,
) -> Result<Takeover, StoreError> {
    let asked: Vec<&str> = groups.iter().filter_map(|group| Some(names.get(group.0 as usize)?.as_str())).collect();
    let (store, provider) = (&parts.store, &parts.provider.name);
    let took = store.leases_take(provider, &asked, names, &parts.owner, lease::TTL).await?;
    let taken = groups.iter().zip(took.answers).filter_map(|(&group, answer)| match answer {
        LeaseTake::Taken { epoch, last } => Some(Taken { group, epoch, last: last.as_ref().map(lease::inherit) }),
        LeaseTake::Held { owner, .. } => {
            tracing::debug!(provider, owner, "another process dispatches");
            None
        }
    });
    let taken: Vec<Taken> = taken.collect();
    // Nothing of these is sent before it is known which keys they have.
    let keys = keyring::read(parts, known).await?;
    Ok(Takeover { taken, left: took.left.iter().map(lease::inherit).collect(), keys })
}

/// Two processes that know the same groups have the same.
fn structure_of(names: &[String]) -> String {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let hash = Sha256::digest(sorted.join("\n"));
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What has to be written ahead: what some limit counts.
pub(super) fn counted(provider: &Provider) -> lease::Counted {
    let pool = &provider.pool;
    let of_budgets = pool.budgets.iter().flat_map(|budget| &budget.limits);
    let of_routes = pool.routes.iter().flat_map(|route| route.limits.iter().chain(&route.key_limits));
    let limits = pool.limits.iter().chain(&pool.key_limits).chain(of_budgets).chain(of_routes);
    limits.fold(lease::Counted::default(), |counted, limit| match limit.measure {
        Measure::Concurrency(_) => lease::Counted { open: true, ..counted },
        Measure::Requests(_) | Measure::Cost(_) => lease::Counted { calls: true, ..counted },
    })
}
