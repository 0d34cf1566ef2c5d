//! The sidecar's AWS credentials: loaded in the background, refreshed before they expire, loaded anew when AWS says so.
//!
//! One task loads, whoever asks waits for it: a burst at expiry causes one load. The SDK's own cache cannot be told that
//! AWS refuses what it holds, and looks at the expiry only when a call is already waiting.

use std::{
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials as AwsCredentials,
    credential_feature::AwsCredentialFeature as Feature,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use super::AwsSource;
use crate::sign_out::{Cause, SignOutError};

/// A provider that fails is not asked more often than this, however many calls come.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// A provider that fails is asked at least this often, although no call comes.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Credentials that AWS calls expired are loaded anew at most this often.
const REPLACE_PAUSE: Duration = Duration::from_secs(10);
/// Refreshed this long before they expire, or when four fifths of their life are over, whichever is later.
const REFRESH_AHEAD: Duration = Duration::from_secs(10 * 60);

/// The one cache of the sidecar's AWS credentials. Clones share it.
#[derive(Clone)]
pub struct Credentials(Arc<Shared>);

struct Shared {
    state: watch::Sender<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    loaded: Option<Loaded>,
    /// AWS calls what is loaded expired; a load that replaces it is under way.
    rejected: bool,
    /// When such a load was asked for, and whether the provider then gave the same again.
    replaced: Option<(Instant, bool)>,
    /// The last load, if it failed.
    failure: Option<Failure>,
    /// Loads that have ended, well or not.
    loads: u64,
    /// Those of them that failed.
    failures: u64,
    /// When the last of them ended well.
    loaded_at: Option<SystemTime>,
}

/// What metrics tell of the credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Whether a call would use what is there, and not wait for something else.
    pub usable: bool,
    /// When the provider last gave credentials, be they others or the same.
    pub loaded_at: Option<SystemTime>,
    /// When they expire, if they do.
    pub expires_at: Option<SystemTime>,
    /// How often the provider gave credentials.
    pub successes: u64,
    /// How often it failed.
    pub failures: u64,
}

/// Credentials, and which of those that were loaded they are: the number grows when they change, not when a load gives
/// the same again.
#[derive(Clone)]
pub(super) struct Loaded {
    generation: u64,
    credentials: AwsCredentials,
}

#[derive(Clone)]
struct Failure {
    at: Instant,
    cause: Cause,
    chain: String,
}

impl State {
    fn usable(&self) -> Option<&Loaded> {
        self.loaded.as_ref().filter(|loaded| !self.rejected && !has_expired(&loaded.credentials))
    }

    fn error(&self) -> SignOutError {
        match &self.failure {
            Some(failure) => SignOutError::because(failure.cause.clone(), failure.chain.clone()),
            None => SignOutError::new(Cause::SidecarCredentialsUnavailable),
        }
    }
}

/// What the health of the service follows: 0 until credentials were first loaded, then a number that grows whenever the
/// provider gives other ones.
pub type Health = watch::Receiver<u64>;

impl Credentials {
    /// An empty cache, and the task that fills it and keeps it fresh, which has to be run.
    pub fn new(source: Arc<AwsSource>, load_timeout: Duration) -> (Self, impl Future<Output = ()> + Send) {
        let credentials = Self(Arc::new(Shared { state: watch::Sender::default(), wanted: Notify::new() }));
        let keeper = credentials.clone();
        (credentials, async move { keeper.keep_fresh(&source, load_timeout).await })
    }

    /// The credentials to use now; waits while they are loaded.
    pub(super) async fn get(&self) -> Result<Loaded, SignOutError> {
        let mut state = self.0.state.subscribe();
        let before = {
            let state = state.borrow_and_update();
            if let Some(loaded) = state.usable() {
                return Ok(loaded.clone());
            }
            if state.failure.as_ref().is_some_and(|failure| failure.at.elapsed() < SHORTEST_PAUSE) {
                return Err(state.error());
            }
            state.loads
        };
        self.0.wanted.notify_one();
        let state = wait_for_load(&mut state, before).await;
        state.usable().cloned().ok_or_else(|| state.error())
    }

    /// AWS calls the credentials that were used expired: loads them anew, at most once in a while, and tells what that
    /// means for the call.
    pub(super) async fn replace(&self, used: &Loaded) -> Cause {
        let mut state = self.0.state.subscribe();
        let mut asked = false;
        let mut before = 0;
        self.0.state.send_if_modified(|state| {
            before = state.loads;
            let is_current = state.loaded.as_ref().is_some_and(|loaded| loaded.generation == used.generation);
            let is_recent = state.replaced.is_some_and(|(at, _)| at.elapsed() < REPLACE_PAUSE);
            if is_current && !state.rejected && !is_recent {
                asked = true;
                state.rejected = true;
                state.replaced = Some((Instant::now(), false));
            }
            // Nobody has to be told yet; the load that follows will tell.
            false
        });
        if asked {
            info!("AWS calls the credentials expired: loading them anew");
            self.0.wanted.notify_one();
        }
        let rejected = state.borrow_and_update().rejected;
        if rejected {
            wait_for_load(&mut state, before).await;
        }
        let state = state.borrow();
        let is_current = state.loaded.as_ref().is_some_and(|loaded| loaded.generation == used.generation);
        match state.replaced {
            Some((_, same_again)) if is_current && same_again => Cause::SidecarCredentialsInvalid,
            _ => Cause::SidecarCredentialsExpired,
        }
    }

    /// Where the credentials come from; waits while they are loaded.
    pub async fn origin(&self) -> Result<Origin, SignOutError> {
        self.get().await.map(|loaded| Origin::of(&loaded.credentials))
    }

    /// Follows whether there are credentials, and whether they have changed.
    pub fn health(&self) -> Health {
        let mut state = self.0.state.subscribe();
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let generation =
                    state.borrow_and_update().loaded.as_ref().map_or(0, |loaded| loaded.generation);
                sender.send_if_modified(|known| std::mem::replace(known, generation) != generation);
                tokio::select! {
                    changed = state.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        receiver
    }

    /// What metrics tell.
    pub fn figures(&self) -> Figures {
        let state = self.0.state.borrow();
        Figures {
            usable: state.usable().is_some(),
            loaded_at: state.loaded_at,
            expires_at: state.loaded.as_ref().and_then(|loaded| loaded.credentials.expiry()),
            successes: state.loads - state.failures,
            failures: state.failures,
        }
    }

    async fn keep_fresh(&self, source: &AwsSource, load_timeout: Duration) {
        let mut failures = 0;
        loop {
            let result = load(source, load_timeout).await;
            failures = if result.is_ok() { 0 } else { failures + 1 };
            self.note(result);

            let next = {
                let state = self.0.state.borrow();
                match (&state.failure, &state.loaded) {
                    (Some(_), _) => Some(pause_after(failures)),
                    (None, Some(loaded)) => refresh_in(&loaded.credentials),
                    (None, None) => None,
                }
            };
            self.until_wanted_or(next).await;
        }
    }

    /// Waits until it is time, or until a call finds nothing that it could use.
    async fn until_wanted_or(&self, next: Option<Duration>) {
        let next = next.map(|delay| Instant::now() + delay);
        let it_is_time = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(it_is_time);
        loop {
            tokio::select! {
                () = &mut it_is_time => return,
                () = self.0.wanted.notified() => {
                    let (usable, failed_at) = {
                        let state = self.0.state.borrow();
                        (state.usable().is_some(), state.failure.as_ref().map(|failure| failure.at))
                    };
                    // Asked for while the last load was under way: that load has served it.
                    if usable {
                        continue;
                    }
                    if let Some(at) = failed_at {
                        sleep_until(at + SHORTEST_PAUSE).await;
                    }
                    return;
                }
            }
        }
    }

    fn note(&self, result: Result<AwsCredentials, CredentialsError>) {
        self.0.state.send_modify(|state| {
            state.loads += 1;
            match result {
                Ok(credentials) => {
                    let same = state
                        .loaded
                        .as_ref()
                        .is_some_and(|loaded| is_same(&loaded.credentials, &credentials));
                    if let (true, Some((_, same_again))) = (state.rejected, &mut state.replaced) {
                        *same_again = same;
                    }
                    state.rejected = false;
                    state.failure = None;
                    state.loaded_at = Some(SystemTime::now());
                    let generation = state.loaded.as_ref().map_or(0, |loaded| loaded.generation);
                    if !same {
                        log_loaded(&credentials);
                    }
                    state.loaded = Some(Loaded { generation: generation + u64::from(!same), credentials });
                }
                Err(error) => {
                    let failure =
                        Failure { at: Instant::now(), cause: cause_of(&error), chain: chain(&error) };
                    let usable =
                        state.loaded.as_ref().is_some_and(|loaded| !has_expired(&loaded.credentials));
                    warn!(
                        error = failure.chain,
                        still_usable = usable,
                        "AWS credentials could not be loaded: {}",
                        failure.cause
                    );
                    state.rejected = false;
                    state.failure = Some(failure);
                    state.failures += 1;
                }
            }
        });
    }
}

/// The SDK asks inside the attempt, after `get` has waited: so what is there is given at once.
impl ProvideCredentials for Credentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let state = self.0.state.borrow();
        future::ProvideCredentials::ready(match &state.loaded {
            Some(loaded) => Ok(loaded.credentials.clone()),
            None => Err(CredentialsError::provider_error("no credentials have been loaded yet")),
        })
    }
}

impl fmt::Debug for Credentials {
    /// Shows nothing: what it holds is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(_)")
    }
}

async fn wait_for_load(state: &mut watch::Receiver<State>, before: u64) -> watch::Ref<'_, State> {
    loop {
        // Not `wait_for`: its closure would have to be given `before` and the borrow returned on both paths.
        if state.borrow_and_update().loads > before || state.changed().await.is_err() {
            return state.borrow();
        }
    }
}

async fn load(source: &AwsSource, load_timeout: Duration) -> Result<AwsCredentials, CredentialsError> {
    let load = async {
        let provider = source
            .config()
            .await
            .credentials_provider()
            .ok_or_else(CredentialsError::not_loaded_no_source)?;
        let credentials = provider.provide_credentials().await?;
        if has_expired(&credentials) {
            return Err(CredentialsError::provider_error(
                "the credentials that the provider gave have expired already",
            ));
        }
        Ok(credentials)
    };
    timeout(load_timeout, load)
        .await
        .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(load_timeout)))
}

fn has_expired(credentials: &AwsCredentials) -> bool {
    credentials.expiry().is_some_and(|expiry| expiry <= SystemTime::now())
}

fn is_same(one: &AwsCredentials, other: &AwsCredentials) -> bool {
    one.access_key_id() == other.access_key_id()
        && one.secret_access_key() == other.secret_access_key()
        && one.session_token() == other.session_token()
}

/// When to refresh; `None` if the credentials do not expire.
fn refresh_in(credentials: &AwsCredentials) -> Option<Duration> {
    let left = credentials.expiry()?.duration_since(SystemTime::now()).unwrap_or_default();
    // A provider that gives the same again until the very end is asked more and more often, but not without a pause.
    Some((left * 4 / 5).max(left.saturating_sub(REFRESH_AHEAD)).max(SHORTEST_PAUSE))
}

/// Exponential with jitter, so that a fleet does not ask in step.
fn pause_after(failures: u32) -> Duration {
    let ceiling =
        SHORTEST_PAUSE.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
    ceiling.mul_f64(fastrand::f64()).max(SHORTEST_PAUSE)
}

/// The cause that a credential error stands for, if there is one in the chain.
pub(super) fn cause_in_chain(error: &(dyn Error + 'static)) -> Option<Cause> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            return Some(cause_of(error));
        }
        next = error.source();
    }
    None
}

fn cause_of(error: &CredentialsError) -> Cause {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => Cause::SidecarCredentialsMissing,
        CredentialsError::InvalidConfiguration(_) => Cause::SidecarMisconfigured,
        _ => Cause::SidecarCredentialsUnavailable,
    }
}

/// The chain by `Display`: the `Debug` of a provider shows key ids.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    crate::redact::for_log(&text, "")
}

/// What may be told of credentials: source and account, never a key id or a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Such as `environment` or `web identity (STS)`.
    pub source: &'static str,
    /// The AWS account, where the provider tells it.
    pub account: Option<String>,
    /// When they expire, if they do.
    pub expires: Option<SystemTime>,
}

impl Origin {
    fn of(credentials: &AwsCredentials) -> Self {
        Self {
            source: source_of(credentials),
            account: credentials.account_id().map(|account| account.as_str().to_owned()),
            expires: credentials.expiry(),
        }
    }

    /// How long they live still; `None` if they do not expire.
    pub fn expires_in(&self) -> Option<Duration> {
        self.expires.map(|expires| expires.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

fn log_loaded(credentials: &AwsCredentials) {
    let origin = Origin::of(credentials);
    info!(
        source = origin.source,
        account = origin.account,
        expires_in_s = origin.expires_in().map(|left| left.as_secs()),
        "AWS credentials loaded"
    );
}

/// The provider has no name that can be read; but it leaves the marks that the SDK puts into its user agent.
fn source_of(credentials: &AwsCredentials) -> &'static str {
    let marks = credentials.get_property::<Vec<Feature>>().map(Vec::as_slice).unwrap_or_default();
    let name = |mark: &Feature| {
        Some(match mark {
            Feature::CredentialsEnvVars => "environment",
            Feature::CredentialsEnvVarsStsWebIdToken
            | Feature::CredentialsProfileStsWebIdToken
            | Feature::CredentialsStsAssumeRoleWebId => "web identity (STS)",
            Feature::CredentialsStsAssumeRole => "assumed role (STS)",
            Feature::CredentialsProfileSso | Feature::CredentialsSso => "SSO",
            Feature::CredentialsProfileProcess | Feature::CredentialsProcess => "process",
            Feature::CredentialsHttp => "container endpoint",
            Feature::CredentialsImds => "instance metadata",
            Feature::CredentialsProfile => "profile",
            Feature::CredentialsCode => "given by the program",
            _ => return None,
        })
    };
    marks.iter().rev().find_map(name).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use aws_config::{BehaviorVersion, SdkConfig};
    use aws_credential_types::provider::{Result as ProviderResult, SharedCredentialsProvider};
    use tokio::time::sleep;

    use super::*;

    type Script = dyn Fn(usize) -> ProviderResult + Send + Sync;

    /// Answers as the script tells for the n-th time it is asked, and counts.
    #[derive(Clone)]
    struct Provider {
        script: Arc<Script>,
        asked: Arc<Mutex<usize>>,
    }

    impl fmt::Debug for Provider {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Provider")
        }
    }

    impl ProvideCredentials for Provider {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let n = {
                let mut asked = self.asked.lock().unwrap();
                *asked += 1;
                *asked - 1
            };
            let answer = (self.script)(n);
            // Not at once, so that a burst finds a load under way.
            future::ProvideCredentials::new(async move {
                sleep(Duration::from_millis(10)).await;
                answer
            })
        }
    }

    fn start(
        script: impl Fn(usize) -> ProviderResult + Send + Sync + 'static,
    ) -> (Credentials, Arc<Mutex<usize>>) {
        let asked = Arc::new(Mutex::new(0));
        let provider = Provider { script: Arc::new(script), asked: asked.clone() };
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(SharedCredentialsProvider::new(provider))
            .build();
        let (credentials, keeper) = Credentials::new(AwsSource::given(config), Duration::from_secs(5));
        tokio::spawn(keeper);
        (credentials, asked)
    }

    fn keys(name: &str, lives: Option<Duration>) -> AwsCredentials {
        AwsCredentials::new(name, "secret", None, lives.map(|lives| SystemTime::now() + lives), "test")
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_causes_one_load() {
        let (credentials, asked) = start(|_| Ok(keys("one", None)));
        let calls: Vec<_> = (0..1000)
            .map(|_| {
                let credentials = credentials.clone();
                tokio::spawn(async move { credentials.get().await.map(|loaded| loaded.generation) })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap(), 1);
        }
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(*asked.lock().unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_refreshed_before_they_expire() {
        let (credentials, asked) = start(|n| Ok(keys(&n.to_string(), Some(Duration::from_secs(3600)))));
        assert_eq!(credentials.get().await.unwrap().generation, 1);
        sleep(Duration::from_secs(2999)).await;
        assert_eq!(*asked.lock().unwrap(), 1);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(*asked.lock().unwrap(), 2);
        assert_eq!(credentials.get().await.unwrap().generation, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_refresh_leaves_what_is_still_good_in_use_and_recovers_by_itself() {
        let (credentials, _) = start(|n| match n {
            1..=3 => Err(CredentialsError::provider_error("down")),
            n => Ok(keys(&n.to_string(), Some(Duration::from_secs(3600)))),
        });
        credentials.get().await.unwrap();
        // The first refresh has failed, and none other can have come: a pause is a second at the least.
        sleep(Duration::from_millis(3_000_500)).await;
        assert_eq!(credentials.get().await.unwrap().generation, 1);
        sleep(Duration::from_secs(120)).await;
        assert_eq!(credentials.get().await.unwrap().generation, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_provider_is_told_apart_from_none_and_not_asked_by_every_call() {
        let (credentials, asked) = start(|_| Err(CredentialsError::provider_error("down")));
        for _ in 0..100 {
            let error = credentials.get().await.err().unwrap();
            assert_eq!(error.cause, Cause::SidecarCredentialsUnavailable);
        }
        assert_eq!(*asked.lock().unwrap(), 1);

        let (credentials, _) = start(|_| Err(CredentialsError::not_loaded("nothing there")));
        assert_eq!(credentials.get().await.err().unwrap().cause, Cause::SidecarCredentialsMissing);
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_aws_calls_expired_are_loaded_anew_once_in_ten_seconds() {
        let (credentials, asked) = start(|n| Ok(keys(if n == 0 { "old" } else { "new" }, None)));
        let old = credentials.get().await.unwrap();

        let calls: Vec<_> = (0..100)
            .map(|_| {
                let (credentials, old) = (credentials.clone(), old.clone());
                tokio::spawn(async move { credentials.replace(&old).await })
            })
            .collect();
        for call in calls {
            assert_eq!(
                call.await.unwrap(),
                Cause::SidecarCredentialsExpired,
                "others were had: worth another attempt"
            );
        }
        assert_eq!(*asked.lock().unwrap(), 2);

        let new = credentials.get().await.unwrap();
        assert_eq!(new.credentials.access_key_id(), "new");
        assert_eq!(credentials.replace(&new).await, Cause::SidecarCredentialsExpired);
        assert_eq!(*asked.lock().unwrap(), 2, "not again within ten seconds");

        sleep(REPLACE_PAUSE).await;
        assert_eq!(
            credentials.replace(&new).await,
            Cause::SidecarCredentialsInvalid,
            "the same were given again"
        );
        assert_eq!(
            credentials.replace(&new).await,
            Cause::SidecarCredentialsInvalid,
            "and are known to be no good"
        );
        assert_eq!(*asked.lock().unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_hangs_is_cut_off() {
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(SharedCredentialsProvider::new(Hanging))
            .build();
        let (credentials, keeper) = Credentials::new(AwsSource::given(config), Duration::from_secs(5));
        tokio::spawn(keeper);
        let asked_at = Instant::now();
        assert_eq!(credentials.get().await.err().unwrap().cause, Cause::SidecarCredentialsUnavailable);
        assert_eq!(asked_at.elapsed(), Duration::from_secs(5));
    }

    #[derive(Debug)]
    struct Hanging;

    impl ProvideCredentials for Hanging {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn health_follows_the_first_load_and_every_change() {
        let (credentials, _) = start(|n| match n {
            0 => Err(CredentialsError::provider_error("down")),
            n => Ok(keys(&n.to_string(), Some(Duration::from_secs(100)))),
        });
        let mut health = credentials.health();
        assert_eq!(*health.borrow_and_update(), 0);
        for generation in 1..4 {
            health.changed().await.unwrap();
            assert_eq!(*health.borrow_and_update(), generation);
        }
    }
}
