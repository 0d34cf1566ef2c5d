//! Walks the table of cases: walk CASES TARGETS. Speaks with clients/run by lines on standard input and output.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    error::Error,
    fs, io,
    time::{Duration, Instant},
};

use serde_json::Value;
use sign_out::{Reach, SignOutClient, SignOutFailed, pb::AdminUserGlobalSignOutResponse};
use tokio::task::JoinHandle;
use tonic::{Code, Streaming};
use tonic_health::pb::{HealthCheckResponse, health_check_response::ServingStatus};

type Answer = Result<AdminUserGlobalSignOutResponse, SignOutFailed>;
type Done = Result<(), Box<dyn Error>>;

struct Walker {
    targets: Value,
    /// Clients outlive a case, because a connection that survives is what some cases are about.
    clients: HashMap<String, SignOutClient>,
    started: Option<JoinHandle<Answer>>,
    watch: Option<Streaming<HealthCheckResponse>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done {
    let [cases, targets] = [1, 2].map(|n| env::args().nth(n).unwrap_or_default());
    let table: Value = serde_json::from_slice(&fs::read(cases)?)?;
    let targets = serde_json::from_slice(&fs::read(targets)?)?;
    let mut walker = Walker { targets, clients: HashMap::new(), started: None, watch: None };
    for case in table["cases"].as_array().ok_or("no cases")? {
        if case["in"].as_array().is_some_and(|languages| !languages.contains(&"rust".into())) {
            continue;
        }
        let name = text(case, "name");
        match walker.case(name, case, &table["defaults"]).await {
            Ok(()) => println!("pass {name}"),
            Err(error) => println!("fail {name} :: {}", error.to_string().replace('\n', " ")),
        }
    }
    Ok(())
}

impl Walker {
    async fn case(&mut self, name: &str, case: &Value, defaults: &Value) -> Done {
        ask(&format!("begin {name}")).await?;
        for step in case["steps"].as_array().ok_or("no steps")? {
            let mut all = defaults.clone();
            all.as_object_mut().ok_or("no defaults")?.extend(step.as_object().ok_or("no step")?.clone());
            self.step(&all).await?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Value) -> Done {
        let (pool, user) = (text(step, "pool").to_owned(), text(step, "user").to_owned());
        let timeout = Duration::from_millis(step["deadline_ms"].as_u64().unwrap_or_default());
        match text(step, "do") {
            "ask" => return ask(text(step, "what")).await,
            "call" => {
                let client = self.dial(step)?;
                let began = Instant::now();
                let answer = client.attempt(&pool, &user, timeout, step["traceparent"].as_str()).await;
                timed(step, began)?;
                check(step, &seen(answer))
            }
            "sign_out" => {
                let client = self.dial(step)?;
                let began = Instant::now();
                let answer = client.sign_out(&pool, &user, timeout, None).await;
                timed(step, began)?;
                check(step, &seen(answer))
            }
            "start" => {
                let client = self.dial(step)?;
                let wait_for_ready = step["wait_for_ready"] == true;
                self.started = Some(tokio::spawn(async move {
                    let deadline = Instant::now() + timeout;
                    loop {
                        // tonic cannot wait for a connection, so this tries until there is one.
                        let answer = client.attempt(&pool, &user, timeout, None).await;
                        let no_connection = answer.as_ref().is_err_and(|failed| {
                            failed.code == Code::Unavailable && failed.reason.is_empty()
                        });
                        if !(wait_for_ready && no_connection && Instant::now() < deadline) {
                            return answer;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }));
                // It is sent when the task first runs, which on one thread is not before this one waits.
                tokio::task::yield_now().await;
                Ok(())
            }
            "cancel" => {
                let started = self.started.take().ok_or("nothing was started")?;
                started.abort();
                let code =
                    if started.await.is_err_and(|error| error.is_cancelled()) { "CANCELLED" } else { "OK" };
                check(step, &BTreeMap::from([("code", code.to_owned())]))
            }
            "finish" => check(step, &seen(self.started.take().ok_or("nothing was started")?.await?)),
            "watch" => {
                self.watch = Some(self.dial(step)?.watch_health(text(step, "service")).await?);
                Ok(())
            }
            "seen" => {
                let watch = self.watch.as_mut().ok_or("nothing is watched")?;
                let status = watch.message().await?.map(|answer| answer.status());
                if status.map(|status| status.as_str_name()) == step["status"].as_str() {
                    return Ok(());
                }
                Err(format!("health is {status:?}, not {}", text(step, "status")).into())
            }
            "ended" => {
                let watch = self.watch.as_mut().ok_or("nothing is watched")?;
                while let Ok(Some(answer)) = watch.message().await {
                    if answer.status() != ServingStatus::NotServing {
                        return Err(format!("the watch went on with {:?}", answer.status()).into());
                    }
                }
                Ok(())
            }
            other => Err(format!("no such step: {other}").into()),
        }
    }

    fn dial(&mut self, step: &Value) -> io::Result<SignOutClient> {
        let name = text(step, "over");
        if step["fresh"] != true
            && let Some(client) = self.clients.get(name)
        {
            return Ok(client.clone());
        }
        let target = &self.targets[name];
        let file = |key: &str| target[key].as_str().map(Into::into);
        let client = SignOutClient::new(Reach {
            address: target["addresses"][0].as_str().unwrap_or_default().to_owned(),
            tls: file("ca").zip(file("cert")).zip(file("key")).map(|((ca, cert), key)| [ca, cert, key]),
            token_file: file("token_file"),
        })?;
        self.clients.insert(name.to_owned(), client.clone());
        Ok(client)
    }
}

fn timed(step: &Value, began: Instant) -> Done {
    let took = u64::try_from(began.elapsed().as_millis())?;
    let (least, most) =
        (step["at_least_ms"].as_u64().unwrap_or(0), step["at_most_ms"].as_u64().unwrap_or(u64::MAX));
    if (least..=most).contains(&took) { Ok(()) } else { Err(format!("it took {took} ms").into()) }
}

/// What the table compares, as text.
fn seen(answer: Answer) -> BTreeMap<&'static str, String> {
    match answer {
        Ok(answer) => BTreeMap::from([
            ("code", "OK".to_owned()),
            ("request_id", (!answer.aws_request_id.is_empty()).to_string()),
            ("signed_out_at", answer.signed_out_at.is_some().to_string()),
        ]),
        Err(failed) => BTreeMap::from([
            ("does", format!("{:?}", failed.does()).to_lowercase()),
            ("code", name(failed.code)),
            ("reason", failed.reason),
            ("fault", failed.fault),
            ("retryable", failed.retryable.to_string()),
            ("outcome", failed.outcome),
            ("aws_error_code", failed.aws_error_code),
            ("retry_after", failed.retry_after.is_some().to_string()),
            ("request_id", (!failed.request_id.is_empty()).to_string()),
            ("fields", failed.fields.join(",")),
        ]),
    }
}

/// A code as every other language writes it.
fn name(code: Code) -> String {
    let mut text = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

fn check(step: &Value, actual: &BTreeMap<&'static str, String>) -> Done {
    let expected = step["expect"].as_object().ok_or("nothing is expected")?;
    let wrong: Vec<String> = expected
        .iter()
        .filter(|(key, value)| actual.get(key.as_str()).map(String::as_str) != value.as_str())
        .map(|(key, value)| format!("{key} is {:?}, not {value}", actual.get(key.as_str())))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

/// Asks the stage. The reply is read on another thread, so that calls under way go on.
async fn ask(what: &str) -> Done {
    println!("ask {what}");
    let reply = tokio::task::spawn_blocking(|| io::stdin().lines().next()).await?;
    let reply = reply.transpose()?.unwrap_or_default();
    if reply == "done" { Ok(()) } else { Err(format!("{what}: {reply}").into()) }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
