use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use proptest::prelude::*;
use tokio::time::sleep;

use super::*;

/// Waits in a queue, sends, waits for the answer. Every event gets the next number of one count, so that what came
/// first is known even within one millisecond.
#[derive(Clone)]
struct Upstream(Arc<Story>);

struct Story {
    queue: Duration,
    answer: Duration,
    clock: AtomicUsize,
    calls: Mutex<Vec<Seen>>,
}

#[derive(Debug, Clone, Default)]
struct Seen {
    user: String,
    begun: usize,
    sent: Option<usize>,
    ended: Option<usize>,
}

impl Upstream {
    fn new(queue: u64, answer: u64) -> Self {
        Self(Arc::new(Story {
            queue: Duration::from_millis(queue),
            answer: Duration::from_millis(answer),
            clock: AtomicUsize::new(1),
            calls: Mutex::default(),
        }))
    }

    fn now(&self) -> usize {
        self.0.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.calls.lock().unwrap().clone()
    }

    fn note(&self, index: usize, change: impl FnOnce(&mut Seen, usize)) {
        let now = self.now();
        change(&mut self.0.calls.lock().unwrap()[index], now);
    }
}

impl SignOut for Upstream {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        struct Ended<'a>(&'a Upstream, usize);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.note(self.1, |seen, now| seen.ended = Some(now));
            }
        }
        let index = {
            let begun = self.now();
            let mut calls = self.0.calls.lock().unwrap();
            calls.push(Seen { user: call.user.name.reveal().to_owned(), begun, ..Seen::default() });
            calls.len() - 1
        };
        let _ended = Ended(self, index);
        sleep(self.0.queue).await;
        call.note_sent();
        self.note(index, |seen, now| seen.sent = Some(now));
        sleep(self.0.answer).await;
        Ok(SignedOut {
            aws_request_id: Some(index.to_string()),
            at: None,
            region: "eu-central-1".parse().unwrap(),
        })
    }
}

fn call_for(name: &str, within: Duration) -> Call {
    Call::new(User::parse("eu-central-1_EXAMPLE02", name).unwrap(), Instant::now() + within)
}

fn call(within: u64) -> Call {
    call_for("ada", Duration::from_millis(within))
}

fn which(answer: Result<SignedOut, SignOutError>) -> usize {
    answer.unwrap().aws_request_id.unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_become_one_and_what_was_sent_is_not_joined() {
    let upstream = Upstream::new(100, 100);
    let joining = Joining::new(upstream.clone());
    let (first, second, third) = (call(1000), call(1000), call(1000));
    let (a, b, c) = tokio::join!(
        joining.sign_out(&first),
        async {
            sleep(Duration::from_millis(99)).await;
            joining.sign_out(&second).await
        },
        async {
            sleep(Duration::from_millis(101)).await;
            joining.sign_out(&third).await
        },
    );
    assert_eq!((which(a), which(b), which(c)), (0, 0, 1));
    assert_eq!(upstream.seen().len(), 2);
    // The outcome of each is that of what was sent for it.
    assert_eq!([first.attempts(), second.attempts(), third.attempts()], [1, 1, 1]);
    assert!(joining.joints.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_joined_call_lives_until_its_last_waiter_has_gone() {
    let upstream = Upstream::new(100, 100);
    let joining = Joining::new(upstream.clone());
    let leaves_at = |ms, call: Call| {
        let joining = &joining;
        async move { tokio::time::timeout(Duration::from_millis(ms), joining.sign_out(&call)).await }
    };
    // The one that began it leaves first, and the other has its answer all the same.
    let (first, second) = tokio::join!(leaves_at(50, call(1000)), leaves_at(500, call(1000)));
    assert!(first.is_err());
    assert_eq!(which(second.unwrap()), 0);

    // When both have left, so has the call, unsent.
    let (first, second) = tokio::join!(leaves_at(50, call(1000)), leaves_at(60, call(1000)));
    assert!(first.is_err() && second.is_err());
    let seen = upstream.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].sent.is_none() && seen[1].ended.is_some());
    assert!(joining.joints.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_joined_call_has_the_latest_deadline_and_is_as_urgent_as_the_most_urgent() {
    let user = User::parse("eu-central-1_EXAMPLE02", "ada").unwrap();
    let now = Instant::now();
    let bulk = Call::bulk(user.clone(), now + Duration::from_secs(100), Duration::from_secs(10));
    let joint = bulk.joint();
    assert_eq!(
        (joint.class(), joint.deadline()),
        (crate::sign_out::Class::Bulk, now + Duration::from_secs(100))
    );

    let soon = Call::new(user.clone(), now + Duration::from_secs(5));
    assert!(joint.admit(&soon));
    joint.promoted().await;
    assert_eq!(joint.deadline(), now + Duration::from_secs(100));

    joint.note_released();
    assert_eq!(
        joint.deadline(),
        now + Duration::from_secs(10),
        "its time begins when the pace lets it through"
    );
    assert_eq!(bulk.deadline(), now + Duration::from_secs(10));
    assert_eq!(soon.deadline(), now + Duration::from_secs(5));

    joint.note_sent();
    assert!(!joint.admit(&Call::new(user, now + Duration::from_secs(5))));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_wait_as_long_as_the_others_is_told_at_once() {
    struct Queue;
    impl SignOut for Queue {
        async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
            call.note_expected(Instant::now() + Duration::from_secs(8));
            std::future::pending().await
        }
    }
    let joining = Joining::new(Queue);
    let (patient, hasty) = (call(10_000), call(2_000));
    let begun = Instant::now();
    let patient = async { joining.sign_out(&patient).await };
    let hasty = async {
        tokio::task::yield_now().await;
        joining.sign_out(&hasty).await.unwrap_err()
    };
    let told = tokio::select! {
        _ = patient => unreachable!(),
        told = hasty => told,
    };
    assert_eq!((told.cause, told.retry_after), (Cause::QuotaExhausted, Some(Duration::from_secs(8))));
    assert_eq!(Instant::now(), begun);
}

#[tokio::test(start_paused = true)]
async fn every_waiter_gets_the_error_with_its_chain() {
    struct Failing;
    impl SignOut for Failing {
        async fn sign_out(&self, _: &Call) -> Result<SignedOut, SignOutError> {
            sleep(Duration::from_millis(1)).await;
            Err(SignOutError::because(Cause::CognitoUnreachable, "no route")
                .retry_after(Duration::from_secs(1)))
        }
    }
    let joining = Joining::new(Failing);
    let (first, second) = (call(1000), call(1000));
    let (a, b) = tokio::join!(joining.sign_out(&first), joining.sign_out(&second));
    for error in [a.unwrap_err(), b.unwrap_err()] {
        assert_eq!(
            (&error.cause, error.retry_after),
            (&Cause::CognitoUnreachable, Some(Duration::from_secs(1)))
        );
        assert_eq!(error.source.unwrap().to_string(), "no route");
    }
}

#[derive(Debug, Clone)]
struct Caller {
    comes: u64,
    user: u8,
    stays: Option<u64>,
    yields: u8,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let caller = (0..40_u64, 0..2_u8, proptest::option::of(0..60_u64), 0..4_u8)
        .prop_map(|(comes, user, stays, yields)| Caller { comes, user, stays, yields });
    proptest::collection::vec(caller, 1..20)
}

proptest! {
    #[test]
    fn whatever_the_interleaving_nobody_gets_the_answer_of_what_was_sent_before_they_asked(
        callers in callers(), queue in 0..15_u64, answer in 0..15_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let upstream = Upstream::new(queue, answer);
        let joining = Arc::new(Joining::new(upstream.clone()));
        let answers: Vec<(usize, Option<usize>, usize)> = runtime.block_on(async {
            let tasks: Vec<_> = callers.iter().cloned().map(|caller| {
                let (joining, upstream) = (joining.clone(), upstream.clone());
                tokio::spawn(async move {
                    sleep(Duration::from_millis(caller.comes)).await;
                    for _ in 0..caller.yields {
                        tokio::task::yield_now().await;
                    }
                    let call = call_for(&format!("user{}", caller.user), Duration::from_secs(1));
                    let asked = upstream.now();
                    let answer = joining.sign_out(&call);
                    let answer = match caller.stays {
                        Some(ms) => tokio::time::timeout(Duration::from_millis(ms), answer).await.ok(),
                        None => Some(answer.await),
                    };
                    (asked, answer.map(which), upstream.now())
                })
            }).collect();
            let mut answers = Vec::new();
            for task in tasks {
                answers.push(task.await.unwrap());
            }
            answers
        });
        let seen = upstream.seen();

        for (caller, (asked, answer, _)) in callers.iter().zip(&answers) {
            match answer {
                Some(index) => prop_assert!(
                    seen[*index].sent.unwrap() > *asked,
                    "{caller:?} asked at {asked} and got the answer of {:?}", seen[*index]
                ),
                None => prop_assert!(caller.stays.is_some(), "{caller:?} got no answer"),
            }
        }
        // At no time do two wait unsent for one user.
        for (n, one) in seen.iter().enumerate() {
            let waited_until = one.sent.or(one.ended).unwrap();
            for other in &seen[n + 1..] {
                prop_assert!(other.user != one.user || other.begun > waited_until, "{one:?} and {other:?}");
            }
        }
        // What ended unsent had no waiter left; and nothing is left behind.
        prop_assert!(seen.iter().all(|call| call.ended.is_some()));
        prop_assert!(joining.joints.lock().is_empty());
    }
}
