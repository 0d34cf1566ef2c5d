//! Calls for the same user that wait and have not been sent become one, with several answers.
//!
//! The two rules:
//!
//! - A call of which a request was sent is never joined: a token that was issued after it would survive. Whether one may
//!   join is decided under the lock that sending takes ([`Call::admit`]), so whatever is sent for a call is sent after
//!   everybody who gets its answer had asked.
//! - A joined call lives until its last waiter has gone. Each waiter keeps its own deadline; the joined call has the
//!   latest of them, and is as urgent as the most urgent.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{Shared, WeakShared},
};
use tokio::time::Instant;

use crate::sign_out::{BoxError, Call, Cause, SignOut, SignOutError, SignedOut, User};

/// One call to `S` for all that wait for the same user.
pub struct Joining<S> {
    inner: Arc<S>,
    joints: Arc<Joints>,
}

type Answer = Result<SignedOut, Arc<SignOutError>>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The last joint of each user that has one under way.
#[derive(Default)]
struct Joints(Mutex<HashMap<User, Joint>>);

struct Joint {
    call: Call,
    /// Held by its waiters alone: when the last one drops it, the call ends.
    answer: WeakShared<Answering>,
}

impl<S: SignOut> Joining<S> {
    /// Joins calls before `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), joints: Arc::default() }
    }

    /// The answer to wait for: of a call that still waits, or of a new one.
    fn join(&self, call: &Call) -> Option<Shared<Answering>> {
        // Declared before the lock so that it is dropped after it: if it is the last handle of its call, that call ends
        // here, and to end is to take the lock.
        let _stale;
        let mut joints = self.joints.lock();
        let found = joints.get(&call.user).and_then(|joint| Some((&joint.call, joint.answer.upgrade()?)));
        if let Some((joint, answer)) = found {
            if joint.admit(call) {
                return Some(answer);
            }
            _stale = answer;
        }

        let joint = call.joint();
        let inner = self.inner.clone();
        let entry = Entry { joints: self.joints.clone(), call: joint.clone() };
        let answer = async move { inner.sign_out(&entry.call).await.map_err(Arc::new) };
        let answer = (Box::pin(answer) as Answering).shared();
        let joint = Joint { call: joint, answer: answer.downgrade()? };
        joints.insert(call.user.clone(), joint);
        Some(answer)
    }
}

impl<S: SignOut> SignOut for Joining<S> {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        // A handle that was made just now is there.
        let Some(answer) = self.join(call) else {
            return Err(SignOutError::new(Cause::SidecarInternalError));
        };
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|error| one_for_each(&error)),
            // Others have more time than this one.
            at = call.hopeless() => {
                Err(SignOutError::new(Cause::QuotaExhausted).retry_after(at.saturating_duration_since(Instant::now())))
            }
        }
    }
}

impl Joints {
    fn lock(&self) -> MutexGuard<'_, HashMap<User, Joint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A joint's place among the joints, given back when it is answered or given up.
struct Entry {
    joints: Arc<Joints>,
    call: Call,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut joints = self.joints.lock();
        // Since it was sent, another may have taken the place.
        if joints.get(&self.call.user).is_some_and(|joint| joint.call.is(&self.call)) {
            joints.remove(&self.call.user);
        }
    }
}

/// The same error for each waiter, with the chain below it.
fn one_for_each(error: &Arc<SignOutError>) -> SignOutError {
    SignOutError {
        cause: error.cause.clone(),
        aws: error.aws.clone(),
        retry_after: error.retry_after,
        source: error.source.is_some().then(|| BoxError::from(SharedSource(error.clone()))),
    }
}

/// What lies below an error that several share.
#[derive(Debug)]
struct SharedSource(Arc<SignOutError>);

impl fmt::Display for SharedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source.as_ref().map_or(Ok(()), |source| source.fmt(f))
    }
}

impl Error for SharedSource {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_ref().and_then(|source| source.source())
    }
}

#[cfg(test)]
#[path = "joining_tests.rs"]
mod tests;
