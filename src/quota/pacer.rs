//! The account's quota, kept attempt by attempt: one budget a region, shared by calls that somebody waits for and by bulk.
//!
//! Why not the `governor` crate: its rate is fixed when it is made, its waiters have no order but chance, and it cannot
//! tell a caller how long the queue before it is. Here the rate falls and recovers with what Cognito says ([`super::pace`]),
//! who is urgent goes first, and who cannot be served in time is told so at once, with the real wait.
//!
//! No task runs for it: whoever is first in the queue waits for its token by itself, and wakes the next.
//!
//! A token and a permit to be at Cognito are taken in one moment, by whoever is first. If a token were taken before, those
//! who hold one would gather while Cognito is slow, and leave together when it is not, past any pace. If a permit were
//! taken before, bulk would hold permits only to wait.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tracing::debug;

use super::{
    gate::{Gate, Permit},
    pace::Pace,
};
use crate::sign_out::{Call, Cause, Class, Region, SignOut, SignOutError, SignedOut, UserPoolId};

/// As many regional clients are kept; more budgets would be of no use.
const MAX_BUDGETS: usize = 64;

/// What the account may be asked a second, by region.
#[derive(Debug, Clone)]
pub struct Quotas {
    /// Of the regions that are not named; `None`: calls that somebody waits for are not paced there.
    pub elsewhere: Option<f64>,
    /// Of the regions that are named.
    pub regions: HashMap<Region, f64>,
    /// The part of each that is ours, over 0 and up to 1.
    pub share: f64,
}

impl Quotas {
    /// What bulk is allowed where no quota was set: 25 is the default quota of the category, and logins of the account
    /// are not all that uses it.
    const BULK_UNLESS_TOLD: f64 = 15.0;

    fn of(&self, region: &Region) -> Option<f64> {
        self.regions.get(region).copied().or(self.elsewhere)
    }
}

/// The budgets of all regions.
#[derive(Debug)]
pub struct Pacer {
    quotas: Quotas,
    gate: Arc<Gate>,
    budgets: Mutex<HashMap<Region, Arc<Budget>>>,
    /// The first regions that were paced: those whose figures are told. Callers name regions, and whoever keeps figures
    /// never forgets one that existed once.
    told: Mutex<HashSet<Region>>,
}

/// How one region's budget is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetFigures {
    /// Which.
    pub region: Region,
    /// The most attempts a second that may ever be let through.
    pub limit: f64,
    /// How many a second are let through now.
    pub pace: f64,
    /// Attempts that wait for the pace and that somebody waits for.
    pub interactive: usize,
    /// The others that wait for it.
    pub bulk: usize,
    /// Throttled attempts that the budget was told of.
    pub throttled: u64,
}

impl Pacer {
    /// Budgets according to `quotas`. Everything goes through `gate`, paced or not; what waits for a budget is sent away
    /// when it closes, and no more wait than there.
    pub fn new(quotas: Quotas, gate: Arc<Gate>) -> Arc<Self> {
        Arc::new(Self { quotas, gate, budgets: Mutex::default(), told: Mutex::default() })
    }

    /// The budget that an attempt is charged to, if it is.
    fn budget(&self, region: &Region, class: Class) -> Option<Arc<Budget>> {
        let quota = self.quotas.of(region);
        if quota.is_none() && class == Class::Interactive {
            return None;
        }
        let mut budgets = lock(&self.budgets);
        if let Some(budget) = budgets.get(region) {
            return Some(budget.clone());
        }
        if budgets.len() >= MAX_BUDGETS {
            // One that nobody waits for is begun anew when it is asked for.
            let idle = budgets.iter().find(|(_, budget)| Arc::strong_count(budget) == 1);
            if let Some(idle) = idle.map(|(region, _)| region.clone()) {
                budgets.remove(&idle);
            }
        }
        let mut told = lock(&self.told);
        if told.len() < MAX_BUDGETS {
            told.insert(region.clone());
        }
        let limit = quota.unwrap_or(Quotas::BULK_UNLESS_TOLD) * self.quotas.share;
        let budget = Arc::new(Budget::new(region.clone(), limit, quota.is_some()));
        budgets.insert(region.clone(), budget.clone());
        Some(budget)
    }

    /// How the budgets are doing that have been used.
    pub fn figures(&self) -> Vec<BudgetFigures> {
        let budgets: Vec<_> = lock(&self.budgets).values().cloned().collect();
        let told = lock(&self.told);
        budgets.iter().filter(|budget| told.contains(&budget.region)).map(|budget| budget.figures()).collect()
    }

    /// Told of a throttled attempt that was not charged: whoever is paced in that region has to know.
    fn throttled_unpaced(&self, region: &Region, since: Instant) {
        let budget = lock(&self.budgets).get(region).cloned();
        if let Some(budget) = budget {
            budget.throttled(since);
        }
    }
}

/// Lets attempts through at the pace of their region, and no more at one time than the gate allows.
pub struct Paced<S, R> {
    inner: S,
    pacer: Arc<Pacer>,
    region_of: R,
}

impl<S: SignOut, R> Paced<S, R>
where
    R: Fn(&UserPoolId) -> Option<Region> + Send + Sync + 'static,
{
    /// `inner` at the pace of `pacer`; `region_of` tells in which region a pool is called.
    pub fn new(inner: S, pacer: Arc<Pacer>, region_of: R) -> Self {
        Self { inner, pacer, region_of }
    }
}

impl<S: SignOut, R> SignOut for Paced<S, R>
where
    R: Fn(&UserPoolId) -> Option<Region> + Send + Sync + 'static,
{
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        // Who serves no region is told so by whoever would call it.
        let Some(region) = (self.region_of)(&call.user.pool) else {
            let _permit = self.pacer.gate.enter().await?;
            return Box::pin(self.inner.sign_out(call)).await;
        };

        let budget = self.pacer.budget(&region, call.class());
        let (_permit, charge) = match &budget {
            Some(budget) => {
                // On the heap: most calls are not paced, and have no room for what that takes.
                let admitted = Box::pin(budget.admit(call, &self.pacer.gate)).await;
                let permit = admitted.map_err(|mut error| {
                    error.aws.region = Some(region.clone());
                    error
                })?;
                (permit, Some(Charge { budget, call, before: call.attempts() }))
            }
            None => (self.pacer.gate.enter().await?, None),
        };
        call.note_released();
        let released = Instant::now();
        // On the heap, and not before there is a permit: what waits is small, what is at work is large.
        let result = Box::pin(self.inner.sign_out(call)).await;
        if let Err(SignOutError { cause: Cause::TooManyRequests, .. }) = &result {
            match &budget {
                Some(budget) => budget.throttled(released),
                None => self.pacer.throttled_unpaced(&region, released),
            }
        }
        drop(charge);
        result
    }
}

/// A token that was taken: given back if nothing was sent for it, however that came.
struct Charge<'a> {
    budget: &'a Budget,
    call: &'a Call,
    before: u32,
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if self.call.attempts() == self.before {
            self.budget.refund();
        }
    }
}

/// The budget of one region.
#[derive(Debug)]
struct Budget {
    region: Region,
    /// Whether calls that somebody waits for are charged too, so that some of it must be left for them.
    shared: bool,
    state: Mutex<State>,
}

/// The urgent go before bulk, then who was sent before (a call ends its retries before others begin), then who came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    class: Class,
    fresh: bool,
    arrival: u64,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    /// Who waits, in the order in which they are served.
    queue: BTreeMap<Key, Waiting>,
    urgent: usize,
    arrivals: u64,
    throttled: u64,
}

#[derive(Debug)]
struct Waiting {
    call: Call,
    slot: Arc<Slot>,
}

/// How somebody who waits is reached.
#[derive(Debug, Default)]
struct Slot {
    wake: Notify,
    /// Sent away: come back after so many nanoseconds. 0 if not.
    sent_away: AtomicU64,
}

enum Place {
    SentAway(Duration),
    /// First in the queue, with so long to wait.
    First(Duration),
    /// Behind others.
    Behind,
}

impl Budget {
    fn new(region: Region, limit: f64, shared: bool) -> Self {
        let state = State {
            pace: Pace::new(limit, Instant::now()),
            queue: BTreeMap::new(),
            urgent: 0,
            arrivals: 0,
            throttled: 0,
        };
        Self { region, shared, state: Mutex::new(state) }
    }

    fn figures(&self) -> BudgetFigures {
        let State { pace, queue, urgent, arrivals: _, throttled } = &*lock(&self.state);
        BudgetFigures {
            region: self.region.clone(),
            limit: pace.limit(),
            pace: pace.rate(),
            interactive: *urgent,
            bulk: queue.len() - urgent,
            throttled: *throttled,
        }
    }

    /// Waits for the call's turn. At once an error if it will not come before the deadline.
    async fn admit<'g>(&self, call: &Call, gate: &'g Gate) -> Result<Permit<'g>, SignOutError> {
        let mut turn = Turn::take(self, call, gate.max_waiting())?;
        let entering = gate.enter_first();
        tokio::pin!(entering);
        loop {
            let wait = match turn.place() {
                Place::SentAway(wait) => return Err(exhausted(wait)),
                Place::First(wait) => Some(wait),
                Place::Behind => None,
            };
            let its_turn = wait == Some(Duration::ZERO);
            if !its_turn {
                // Nobody stands at the gate who could not go: a permit that is kept for it would be lost to others.
                entering.set(gate.enter_first());
            }
            tokio::select! {
                biased;
                () = gate.closing().cancelled() => return Err(SignOutError::shutting_down()),
                () = turn.slot.wake.notified() => {}
                () = call.promoted(), if turn.key.class == Class::Bulk => turn.promote(),
                () = sleep(wait.unwrap_or_default()), if wait.is_some() && !its_turn => {}
                permit = &mut entering, if its_turn => {
                    let permit = permit?;
                    // Unless somebody more urgent has come in the meantime, or the pace has fallen.
                    if turn.go() {
                        return Ok(permit);
                    }
                    entering.set(gate.enter_first());
                }
            }
        }
    }

    /// How full the bucket must be for a class: bulk leaves one token for whoever comes next, if the bucket holds two.
    fn level(&self, class: Class) -> f64 {
        match class {
            Class::Bulk if self.shared => 2.0,
            Class::Interactive | Class::Bulk => 1.0,
        }
    }

    fn throttled(&self, since: Instant) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.throttled += 1;
        if !state.pace.throttled(since, now) {
            return;
        }
        debug!(region = self.region.as_str(), rate = state.pace.rate(), "throttled: the pace falls");
        // Who was in time at the old pace may not be at the new one.
        let State { pace, queue, urgent, .. } = &mut *state;
        let mut ahead = 0;
        queue.retain(|key, waiting| {
            let wait = pace.wait(ahead, now);
            let late = now.checked_add(wait).is_none_or(|at| at > waiting.call.deadline());
            if late {
                waiting.slot.send_away(wait);
                *urgent -= usize::from(key.class == Class::Interactive);
            } else {
                waiting.call.note_expected(now + wait);
                ahead += 1;
            }
            !late
        });
        state.wake_first();
    }

    fn refund(&self) {
        let mut state = lock(&self.state);
        state.pace.refund();
        state.wake_first();
    }
}

impl State {
    /// How many go before a newcomer.
    fn ahead_of(&self, class: Class, fresh: bool) -> usize {
        if class == Class::Bulk && fresh { self.queue.len() } else { self.urgent }
    }

    fn enter(&mut self, class: Class, waiting: Waiting) -> Key {
        self.arrivals += 1;
        self.urgent += usize::from(class == Class::Interactive);
        let key = Key { class, fresh: waiting.call.attempts() == 0, arrival: self.arrivals };
        self.queue.insert(key, waiting);
        key
    }

    fn leave(&mut self, key: Key) -> Option<Waiting> {
        let waiting = self.queue.remove(&key)?;
        self.urgent -= usize::from(key.class == Class::Interactive);
        Some(waiting)
    }

    fn is_first(&self, key: Key) -> bool {
        self.queue.first_key_value().is_some_and(|(first, _)| *first == key)
    }

    fn wake_first(&self) {
        if let Some((_, first)) = self.queue.first_key_value() {
            first.slot.wake.notify_one();
        }
    }
}

impl Slot {
    fn send_away(&self, wait: Duration) {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.sent_away.store(nanos.max(1), Ordering::Relaxed);
        self.wake.notify_one();
    }
}

/// A place in the queue of a budget, left however the waiting ends.
struct Turn<'a> {
    budget: &'a Budget,
    call: &'a Call,
    slot: Arc<Slot>,
    key: Key,
}

impl<'a> Turn<'a> {
    fn take(budget: &'a Budget, call: &'a Call, max_waiting: usize) -> Result<Self, SignOutError> {
        let class = call.class();
        let now = Instant::now();
        let mut state = lock(&budget.state);
        let ahead = state.ahead_of(class, call.attempts() == 0);
        let wait = state.pace.wait(ahead, now);
        let expected = now.checked_add(wait).filter(|at| *at <= call.deadline());
        let Some(expected) = expected else { return Err(exhausted(wait)) };
        // Each class has its own room: a great many in bulk must not shut out who comes alone.
        let same = match class {
            Class::Interactive => state.urgent,
            Class::Bulk => state.queue.len() - state.urgent,
        };
        if same > max_waiting {
            return Err(SignOutError::new(Cause::Overloaded).retry_after(wait));
        }
        if !wait.is_zero() {
            call.note_expected(expected);
        }
        let slot = Arc::<Slot>::default();
        let key = state.enter(class, Waiting { call: call.clone(), slot: slot.clone() });
        drop(state);
        Ok(Self { budget, call, slot, key })
    }

    fn place(&mut self) -> Place {
        let sent_away = self.slot.sent_away.load(Ordering::Relaxed);
        if sent_away != 0 {
            return Place::SentAway(Duration::from_nanos(sent_away));
        }
        let mut state = lock(&self.budget.state);
        if !state.is_first(self.key) {
            return Place::Behind;
        }
        let now = Instant::now();
        let wait = state.pace.until(self.budget.level(self.key.class), now);
        if now.checked_add(wait).is_none_or(|at| at > self.call.deadline()) {
            state.leave(self.key);
            state.wake_first();
            return Place::SentAway(wait);
        }
        Place::First(wait)
    }

    /// Takes the token. Whether it is there, and ours.
    fn go(&mut self) -> bool {
        let mut state = lock(&self.budget.state);
        let level = self.budget.level(self.key.class);
        let goes = state.is_first(self.key) && state.pace.take(level, Instant::now()).is_ok();
        if goes {
            state.leave(self.key);
            state.wake_first();
        }
        goes
    }

    /// Somebody waits for it now: it goes to the end of those for whom that is so.
    fn promote(&mut self) {
        let mut state = lock(&self.budget.state);
        let Some(waiting) = state.leave(self.key) else { return };
        let wait = {
            let ahead = state.urgent;
            state.pace.wait(ahead, Instant::now())
        };
        self.key = state.enter(Class::Interactive, waiting);
        state.wake_first();
        drop(state);
        if let Some(expected) = Instant::now().checked_add(wait) {
            self.call.note_expected(expected);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.budget.state);
        if state.leave(self.key).is_some() {
            state.wake_first();
        }
    }
}

fn exhausted(wait: Duration) -> SignOutError {
    SignOutError::new(Cause::QuotaExhausted).retry_after(wait)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pacer_tests.rs"]
mod tests;
