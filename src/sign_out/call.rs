//! A call, until it is answered: what is known of it by all that hold it.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use opentelemetry::trace::SpanContext;
use opentelemetry_sdk::trace::Span;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

use super::User;

/// How urgent a call is. The more urgent is the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Somebody waits for the answer.
    Interactive,
    /// One of many, which take what the others leave.
    Bulk,
}

/// One sign-out asked for, until it is answered. A clone is the same call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Whom to sign out.
    pub user: User,
    /// The span that what is done for the call belongs to; nothing where no traces are made.
    pub span: Option<Arc<SpanContext>>,
    progress: Arc<Progress>,
}

/// What is known of a call by all that hold it. Small, for thousands may wait: tokio's `watch` would take twice as much
/// as all of it.
#[derive(Debug, Default)]
struct Progress {
    /// One lock for all of it: whether another call may still join is decided in the same moment as sending is.
    state: Mutex<State>,
    /// Told of every change of the state, and of a joining.
    changed: Notify,
    /// The progress of the call that is made for this one and others, once there is one.
    joined: OnceLock<Arc<Progress>>,
}

#[derive(Debug, Default)]
struct State {
    terms: Terms,
    sent: u32,
    refused: u32,
    /// When the pace first let it through.
    released: Option<Instant>,
    /// When the pace will let it through, as far as can be told.
    expected: Option<Instant>,
    /// Since when an attempt waits for its turn, if one does, and what ends with the wait.
    waiting: Option<(Instant, Option<Box<Span>>)>,
}

/// Until when those who wait for a call do so. Both for a call that was joined.
#[derive(Debug, Clone, Copy, Default)]
struct Terms {
    interactive: Option<Instant>,
    bulk: Option<BulkTerms>,
}

#[derive(Debug, Clone, Copy)]
struct BulkTerms {
    /// When the whole stream must have been answered.
    limit: Instant,
    /// How long one call may take from when the pace lets it through.
    call_timeout: Duration,
}

impl Terms {
    fn class(&self) -> Class {
        if self.interactive.is_some() { Class::Interactive } else { Class::Bulk }
    }

    fn deadline(&self, released: Option<Instant>) -> Option<Instant> {
        let bulk = self.bulk.map(|bulk| match released {
            Some(at) => bulk.limit.min(at + bulk.call_timeout),
            None => bulk.limit,
        });
        self.interactive.max(bulk)
    }

    fn add(&mut self, other: Self) {
        self.interactive = self.interactive.max(other.interactive);
        self.bulk = match (self.bulk, other.bulk) {
            (Some(ours), Some(theirs)) => Some(BulkTerms {
                limit: ours.limit.max(theirs.limit),
                call_timeout: ours.call_timeout.max(theirs.call_timeout),
            }),
            (ours, theirs) => ours.or(theirs),
        };
    }
}

impl Call {
    /// A call that somebody waits for until `deadline`, and of which nothing has been sent.
    pub fn new(user: User, deadline: Instant) -> Self {
        Self::on_terms(user, Terms { interactive: Some(deadline), bulk: None })
    }

    /// One call of many, which are to be done by `limit`. Its own time, `call_timeout`, begins when the pace lets it
    /// through: a long queue must not use it up.
    pub fn bulk(user: User, limit: Instant, call_timeout: Duration) -> Self {
        Self::on_terms(user, Terms { interactive: None, bulk: Some(BulkTerms { limit, call_timeout }) })
    }

    fn on_terms(user: User, terms: Terms) -> Self {
        let state = Mutex::new(State { terms, ..State::default() });
        Self { user, span: None, progress: Arc::new(Progress { state, ..Progress::default() }) }
    }

    /// The same, as a part of a span.
    pub fn within(self, span: Option<Arc<SpanContext>>) -> Self {
        Self { span, ..self }
    }

    /// A call that is made for this one, and for others that [join](Self::admit) it; its attempts are told as part of
    /// this one's span.
    pub fn joint(&self) -> Self {
        let joint = Self::on_terms(self.user.clone(), self.progress.state().terms).within(self.span.clone());
        self.follow(&joint);
        joint
    }

    /// Lets `other` join, unless a request was sent already: a token that was issued after it would survive. The two
    /// must be about the same user.
    ///
    /// Decided under the lock that [`note_sent`](Self::note_sent) takes, so that whatever is sent for a call is sent
    /// after it was admitted.
    pub fn admit(&self, other: &Self) -> bool {
        let terms = other.progress.state().terms;
        {
            let mut state = self.progress.state();
            if state.sent > 0 {
                return false;
            }
            state.terms.add(terms);
        }
        self.progress.changed.notify_waiters();
        other.follow(self);
        true
    }

    /// Whether the two are the same call, not only alike.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.progress, &other.progress)
    }

    /// From now on what happens to `joint` happens to this call.
    fn follow(&self, joint: &Self) {
        if self.progress.joined.set(joint.progress.clone()).is_ok() {
            // Whoever waits for a change must look elsewhere.
            self.progress.changed.notify_waiters();
        }
    }

    /// What has happened to the call, or to the one that is made for it.
    fn current(&self) -> &Progress {
        self.progress.joined.get().unwrap_or(&self.progress)
    }

    /// When the answer must have been given. No attempt starts after it. It may come nearer when the pace lets the
    /// call through, and move away when another call joins.
    pub fn deadline(&self) -> Instant {
        let released = self.current().state().released;
        let terms = self.progress.state().terms;
        // One of the two is always there.
        terms.deadline(released).unwrap_or_else(Instant::now)
    }

    /// Waits until the deadline has passed.
    pub async fn expired(&self) {
        loop {
            let changed = self.current().changed.notified();
            let deadline = self.deadline();
            if Instant::now() >= deadline {
                return;
            }
            if self.class() == Class::Interactive {
                // Nothing moves it nearer.
                drop(changed);
                sleep_until(deadline).await;
            } else {
                // On the heap: there are fewer of these, and the others are to be small.
                let _ = Box::pin(timeout_at(deadline, changed)).await;
            }
        }
    }

    /// How urgent it is: as urgent as the most urgent that has joined.
    pub fn class(&self) -> Class {
        self.progress.state().terms.class()
    }

    /// Waits until it is urgent.
    pub async fn promoted(&self) {
        let urgent = |state: &State| (state.terms.class() == Class::Interactive).then_some(());
        self.progress.until(urgent).await;
    }

    /// Notes when the pace will let the call through, as far as can be told.
    pub fn note_expected(&self, at: Instant) {
        self.progress.change(|state| state.expected = Some(at));
    }

    /// Notes that the pace has let the call through.
    pub fn note_released(&self) {
        self.progress.change(|state| {
            state.expected = None;
            state.released.get_or_insert_with(Instant::now);
        });
    }

    /// Waits until it is clear that the pace lets nothing through for this call before its deadline, although it may
    /// for others that wait for the same; tells when it will.
    pub async fn hopeless(&self) -> Instant {
        let deadline = self.progress.state().terms.deadline(None);
        let too_late = |state: &State| match (state.expected, deadline) {
            (Some(at), Some(deadline)) if state.sent == 0 && at > deadline => Some(at),
            _ => None,
        };
        self.current().until(too_late).await
    }

    /// Notes that a request is handed to the HTTP client: from now on Cognito may act, and nobody may join.
    pub fn note_sent(&self) {
        self.progress.change(|state| state.sent += 1);
    }

    /// Notes that AWS answered a request that was sent, and that the answer rules out that it acted.
    pub fn note_refused(&self) {
        self.progress.change(|state| state.refused += 1);
    }

    /// How many requests were handed to the HTTP client.
    pub fn attempts(&self) -> u32 {
        self.current().state().sent
    }

    /// Notes that an attempt waits for its turn from now on, which may have a span.
    pub fn note_waiting(&self, span: Option<Span>) {
        self.progress.state().waiting = Some((Instant::now(), span.map(Box::new)));
    }

    /// Since when the attempt has waited that now waits no longer; `None` if none did.
    pub fn note_turn(&self) -> Option<(Instant, Option<Box<Span>>)> {
        self.progress.state().waiting.take()
    }

    /// What a failure of this call says about the user's sessions.
    pub fn outcome(&self) -> Outcome {
        let state = self.current().state();
        match state.sent {
            0 => Outcome::NotSent,
            sent if sent == state.refused => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells whoever waits for it.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// Waits until `check` finds in the state what it looks for.
    async fn until<T>(&self, check: impl Fn(&State) -> Option<T>) -> T {
        loop {
            // Made before the state is looked at, it is told of all that changes afterwards.
            let changed = self.changed.notified();
            if let Some(found) = check(&self.state()) {
                return found;
            }
            changed.await;
        }
    }
}

/// Whether a user whose sign-out failed may be signed out all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Certainly nothing reached Cognito.
    NotSent,
    /// Every request that was sent was refused by AWS.
    Refused,
    /// At least one request was sent whose effect is not known.
    Unknown,
}

impl Outcome {
    /// The word that callers and logs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}
