use std::sync::atomic::AtomicUsize;

use super::*;
use crate::sign_out::User;

/// Answers at once, as it is told; notes who came when.
#[derive(Default)]
struct Upstream {
    throttled: AtomicUsize,
    seen: Mutex<Vec<(String, Instant)>>,
}

impl SignOut for Upstream {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        call.note_sent();
        lock(&self.seen).push((call.user.name.reveal().to_owned(), Instant::now()));
        let throttle = |left: usize| left.checked_sub(1);
        if self.throttled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, throttle).is_ok() {
            return Err(SignOutError::new(Cause::TooManyRequests));
        }
        Ok(SignedOut { aws_request_id: None, at: None, region: "eu-central-1".parse().unwrap() })
    }
}

struct Setup {
    upstream: Arc<Upstream>,
    gate: Arc<Gate>,
    paced: Arc<dyn Dynamic>,
}

/// A `SignOut` whose type has no name here.
trait Dynamic: Send + Sync {
    fn go(self: Arc<Self>, call: Call) -> tokio::task::JoinHandle<Result<SignedOut, SignOutError>>;
}

impl<S: SignOut> Dynamic for S {
    fn go(self: Arc<Self>, call: Call) -> tokio::task::JoinHandle<Result<SignedOut, SignOutError>> {
        tokio::spawn(async move { self.sign_out(&call).await })
    }
}

fn setup(rps: Option<f64>) -> Setup {
    let upstream = Arc::<Upstream>::default();
    let gate = Gate::new(100, 1000);
    let pacer = Pacer::new(Quotas { elsewhere: rps, regions: HashMap::new(), share: 1.0 }, gate.clone());
    let paced = Arc::new(Paced::new(upstream.clone(), pacer, UserPoolId::region));
    Setup { upstream, gate, paced }
}

impl Setup {
    fn urgent(&self, name: &str, within: f64) -> tokio::task::JoinHandle<Result<SignedOut, SignOutError>> {
        self.paced.clone().go(Call::new(user(name), Instant::now() + Duration::from_secs_f64(within)))
    }

    fn bulk(&self, name: &str) -> tokio::task::JoinHandle<Result<SignedOut, SignOutError>> {
        self.paced.clone().go(bulk(name))
    }

    fn order(&self) -> Vec<String> {
        lock(&self.upstream.seen).iter().map(|(name, _)| name.clone()).collect()
    }
}

fn user(name: &str) -> User {
    User::parse("eu-central-1_EXAMPLE02", name).unwrap()
}

fn bulk(name: &str) -> Call {
    Call::bulk(user(name), Instant::now() + Duration::from_secs(3600), Duration::from_secs(10))
}

/// Lets every task go as far as it goes without time.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_waited_for_goes_before_bulk_that_came_earlier() {
    let setup = setup(Some(10.0));
    let mut tasks = Vec::new();
    for name in ["b1", "b2", "b3", "b4"] {
        tasks.push(setup.bulk(name));
        settle().await;
    }
    tasks.push(setup.urgent("u1", 60.0));
    tasks.push(setup.urgent("u2", 60.0));
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(setup.order(), ["b1", "u1", "u2", "b2", "b3", "b4"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_quota_bulk_is_paced_and_the_others_are_not() {
    let setup = setup(None);
    let begun = Instant::now();
    let tasks: Vec<_> = (0..100).map(|n| setup.urgent(&format!("u{n}"), 1.0)).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(Instant::now(), begun);

    let tasks: Vec<_> = (0..450).map(|n| setup.bulk(&format!("b{n}"))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    // 15 a second after a cold start.
    let took = begun.elapsed().as_secs_f64();
    assert!((30.0..40.0).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_deadline_is_told_at_once_with_its_length() {
    let setup = setup(Some(10.0));
    // A cold start: not yet 2 a second.
    setup.urgent("first", 60.0).await.unwrap().unwrap();
    let waiting: Vec<_> = (0..3).map(|n| setup.urgent(&format!("u{n}"), 60.0)).collect();
    settle().await;

    let begun = Instant::now();
    let error = setup.urgent("late", 1.5).await.unwrap().unwrap_err();
    assert_eq!(error.cause, Cause::QuotaExhausted);
    assert_eq!(error.aws.region.unwrap().as_str(), "eu-central-1");
    let wait = error.retry_after.unwrap().as_secs_f64();
    assert!((2.0..2.2).contains(&wait), "{wait}");
    assert_eq!(Instant::now(), begun);
    for task in waiting {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_no_longer_in_time_when_the_pace_falls_is_told_then() {
    let setup = setup(Some(10.0));
    setup.urgent("first", 60.0).await.unwrap().unwrap();
    setup.upstream.throttled.store(1, Ordering::Relaxed);
    // The next is throttled, half a second from now; the one behind it would have been in time but for that.
    let throttled = setup.urgent("throttled", 60.0);
    settle().await;
    let behind = setup.urgent("behind", 1.08);
    let begun = Instant::now();
    assert_eq!(throttled.await.unwrap().unwrap_err().cause, Cause::TooManyRequests);
    assert_eq!(behind.await.unwrap().unwrap_err().cause, Cause::QuotaExhausted);
    assert!(begun.elapsed() < Duration::from_millis(600));
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_charged_and_a_throttled_one_is_seen_although_a_later_one_succeeds() {
    let upstream = Arc::<Upstream>::default();
    upstream.throttled.store(1, Ordering::Relaxed);
    let gate = Gate::new(100, 1000);
    let quotas = Quotas { elsewhere: Some(10.0), regions: HashMap::new(), share: 1.0 };
    let pacer = Pacer::new(quotas, gate);
    let paced = Paced::new(upstream.clone(), pacer.clone(), UserPoolId::region);
    let call = Call::new(user("ada"), Instant::now() + Duration::from_secs(60));
    paced.sign_out(&call).await.unwrap_err();
    paced.sign_out(&call).await.unwrap();

    assert_eq!(call.attempts(), 2);
    let region = "eu-central-1".parse().unwrap();
    let budget = pacer.budget(&region, Class::Interactive).unwrap();
    // It was on its way up from 1.9 a second, and has fallen to 70 % of that.
    let rate = lock(&budget.state).pace.rate();
    assert!(rate < 1.5, "{rate}");
    let seen = lock(&upstream.seen);
    assert!(
        seen[1].1 - seen[0].1 >= Duration::from_millis(700),
        "the second attempt had to wait for a token"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_not_charged() {
    struct Unsent;
    impl SignOut for Unsent {
        async fn sign_out(&self, _: &Call) -> Result<SignedOut, SignOutError> {
            Err(SignOutError::new(Cause::SidecarCredentialsUnavailable))
        }
    }
    let quotas = Quotas { elsewhere: Some(10.0), regions: HashMap::new(), share: 1.0 };
    let paced = Paced::new(Unsent, Pacer::new(quotas, Gate::new(10, 10)), UserPoolId::region);
    let begun = Instant::now();
    for _ in 0..10 {
        let call = Call::new(user("ada"), begun + Duration::from_secs(1));
        assert_eq!(paced.sign_out(&call).await.unwrap_err().cause, Cause::SidecarCredentialsUnavailable);
    }
    assert_eq!(Instant::now(), begun);
}

#[tokio::test(start_paused = true)]
async fn a_bulk_call_that_somebody_waits_for_now_goes_to_the_front() {
    let setup = setup(Some(10.0));
    let first = setup.bulk("b1");
    settle().await;
    let (second, third) = (setup.bulk("b2"), bulk("b3"));
    settle().await;
    let promoted = setup.paced.clone().go(third.clone());
    settle().await;
    assert!(third.admit(&Call::new(user("b3"), Instant::now() + Duration::from_secs(60))));
    for task in [first, second, promoted] {
        task.await.unwrap().unwrap();
    }
    assert_eq!(setup.order(), ["b1", "b3", "b2"]);
}

#[tokio::test(start_paused = true)]
async fn closing_sends_away_what_waits_and_who_leaves_makes_room() {
    let setup = setup(Some(10.0));
    setup.urgent("u1", 60.0).await.unwrap().unwrap();
    let (second, third) = (setup.urgent("u2", 60.0), setup.urgent("u3", 60.0));
    settle().await;
    second.abort();
    third.await.unwrap().unwrap();
    assert_eq!(setup.order(), ["u1", "u3"]);

    let fourth = setup.urgent("u4", 60.0);
    settle().await;
    setup.gate.close();
    assert_eq!(fourth.await.unwrap().unwrap_err().cause, Cause::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn figures_are_told_of_the_first_regions_only_however_many_are_called() {
    let quotas = Quotas { elsewhere: Some(10.0), regions: HashMap::new(), share: 1.0 };
    let pacer = Pacer::new(quotas, Gate::new(100, 1000));
    for n in 0..2 * MAX_BUDGETS {
        let region: Region = format!("eu-nowhere-{n}").parse().unwrap();
        let budget = pacer.budget(&region, Class::Bulk).unwrap();
        budget.throttled(Instant::now());
    }
    let figures = pacer.figures();
    assert!(!figures.is_empty() && figures.len() <= MAX_BUDGETS, "{}", figures.len());
    let mut numbers =
        figures.iter().map(|of| of.region.as_str().rsplit_once('-').unwrap().1.parse::<usize>());
    assert!(numbers.all(|n| n.unwrap() < MAX_BUDGETS), "{figures:?}");
    assert_eq!((figures[0].limit, figures[0].throttled), (10.0, 1));
    assert!(figures[0].pace < 1.0, "{figures:?}");
}

/// Answers nobody until it is well again; notes who was sent then.
struct Slow {
    well_at: Instant,
    sent: Mutex<Vec<(Class, Instant)>>,
}

impl SignOut for Slow {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        call.note_sent();
        lock(&self.sent).push((call.class(), Instant::now()));
        tokio::time::sleep_until(self.well_at).await;
        Ok(SignedOut { aws_request_id: None, at: None, region: "eu-central-1".parse().unwrap() })
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_waited_for_a_slow_cognito_do_not_leave_together_and_who_is_waited_for_goes_first() {
    const RATE: usize = 20;
    let begun = Instant::now();
    let slow = Arc::new(Slow { well_at: begun + Duration::from_secs(60), sent: Mutex::default() });
    let gate = Gate::new(5, 1000);
    let quotas = Quotas { elsewhere: Some(RATE as f64), regions: HashMap::new(), share: 1.0 };
    let paced = Arc::new(Paced::new(slow.clone(), Pacer::new(quotas, gate), UserPoolId::region));
    let mut tasks: Vec<_> = (0..100).map(|n| paced.clone().go(bulk(&format!("b{n}")))).collect();
    tokio::time::sleep_until(begun + Duration::from_secs(59)).await;
    // All permits are taken, and bulk has waited for one for most of a minute.
    assert_eq!(lock(&slow.sent).len(), 5);
    let urgent = Call::new(user("ada"), begun + Duration::from_secs(120));
    tasks.push(paced.clone().go(urgent));
    settle().await;
    for task in tasks {
        task.await.unwrap().unwrap();
    }

    let sent = lock(&slow.sent)[5..].to_vec();
    assert_eq!(sent[0], (Class::Interactive, slow.well_at), "it goes before those that came earlier");
    for (index, (_, from)) in sent.iter().enumerate() {
        let within = sent[index..].iter().take_while(|(_, at)| *at < *from + Duration::from_secs(1)).count();
        // What the bucket held, and a second's worth.
        assert!(within <= 2 + RATE, "{within} in the second from {:?}", *from - begun);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_are_at_cognito_than_the_gate_allows_and_the_next_goes_when_one_comes_back() {
    let begun = Instant::now();
    let slow = Arc::new(Slow { well_at: begun + Duration::from_secs(10), sent: Mutex::default() });
    let quotas = Quotas { elsewhere: None, regions: HashMap::new(), share: 1.0 };
    let paced = Arc::new(Paced::new(slow.clone(), Pacer::new(quotas, Gate::new(2, 1)), UserPoolId::region));
    let call = |name: &str| paced.clone().go(Call::new(user(name), begun + Duration::from_secs(60)));
    let (first, second) = (call("u1"), call("u2"));
    settle().await;
    let third = call("u3");
    settle().await;
    assert_eq!(call("u4").await.unwrap().unwrap_err().cause, Cause::Overloaded);
    first.abort();
    settle().await;
    assert_eq!(lock(&slow.sent).len(), 3);
    for task in [second, third] {
        task.await.unwrap().unwrap();
    }
}
