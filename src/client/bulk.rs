//! `bulk`: many users, over one stream, with a results file from which a run goes on.

mod input;
mod progress;
mod results;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use self::{
    input::{Record, Wanted},
    progress::{Counts, Progress},
    results::Done,
};
use super::{Connection, channel, print};
use crate::{
    config::BulkArgs,
    pb::{
        AdminUserGlobalSignOutRequest, BulkAdminUserGlobalSignOutRequest, BulkAdminUserGlobalSignOutResponse,
        bulk_admin_user_global_sign_out_response::Outcome, sign_out_service_client::SignOutServiceClient,
    },
    shutdown::Stop,
    sign_out::User,
    status,
};

/// Users that are sent or wait to be sent again. No more are read, whatever comes.
const WINDOW: usize = 256;
/// After Ctrl-C, what is under way gets this long.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Signs out everybody in the file. Exit status 0 only if everybody is signed out.
pub async fn run(args: BulkArgs) -> ExitCode {
    let results = match (&args.results, input::is_stdin(&args.file)) {
        (Some(results), _) => results.clone(),
        (None, true) => return wrong("say by --results where results go: standard input has no name"),
        (None, false) => {
            let mut name = args.file.clone().into_os_string();
            name.push(".results.jsonl");
            PathBuf::from(name)
        }
    };
    let done = match results::look(&results, args.resume) {
        Ok(done) => done,
        Err(error) => return wrong(format_args!("--results {}: {error}", results.display())),
    };
    let records = || {
        let records = input::open(&args.file, args.format, args.user_pool_id.clone());
        records.map_err(|error| format!("--file {}: {error}", args.file.display()))
    };
    if args.dry_run {
        return match records() {
            Ok(records) => dry_run(records, &done),
            Err(error) => wrong(error),
        };
    }
    drop(done);

    // A file is read twice, so that the way that is left can be told; standard input cannot be.
    let total = if input::is_stdin(&args.file) {
        None
    } else {
        match records() {
            Ok(records) => Some(records.count() as u64),
            Err(error) => return wrong(error),
        }
    };
    let records = match records() {
        Ok(records) => records,
        Err(error) => return wrong(error),
    };
    let channel = match channel(&args.client) {
        Ok(channel) => channel,
        Err(error) => return wrong(error),
    };
    let stop = match Stop::on_signals() {
        Ok(stop) => stop,
        Err(error) => return print::failure(error),
    };
    let (done, file) = match results::open(&results, args.resume) {
        Ok(opened) => opened,
        Err(error) => return wrong(format_args!("--results {}: {error}", results.display())),
    };
    let (lines, writer) = results::writer(file);

    let mut run = Run {
        records: in_background(records),
        all_read: false,
        done,
        waiting: BTreeMap::new(),
        sent: BTreeMap::new(),
        lines,
        counts: Counts::default(),
        progress: Progress::new(total),
        settled: Instant::now(),
        max_attempts: args.max_attempts,
    };
    let end = run.all(channel, &args, &stop).await;
    let Run { lines, counts, progress, all_read, waiting, sent, .. } = run;
    drop(lines);
    progress.finish();
    let written = writer.await.map_err(io::Error::other).and_then(|written| written);

    let unsettled = (waiting.len() + sent.len()) as u64;
    let complete = all_read && unsettled == 0;
    let left = total.map_or(unsettled, |total| total.saturating_sub(counts.settled()));
    print::answer(summary(&counts, left, complete));
    if let Err(error) = written {
        return print::failure(format_args!("--results {}: {error}", results.display()));
    }
    if let Err(why) = end {
        print::failure(why);
    }
    if complete && counts.failures() == 0 {
        return ExitCode::SUCCESS;
    }
    print::failure(format_args!("not everybody is signed out; to go on: {}", resume_command(&results)))
}

fn wrong(error: impl std::fmt::Display) -> ExitCode {
    print::failure(error);
    ExitCode::from(2)
}

/// Reads on a thread of its own, no further ahead than a window.
fn in_background(records: input::Records) -> mpsc::Receiver<io::Result<Record>> {
    let (sender, receiver) = mpsc::channel(WINDOW);
    tokio::task::spawn_blocking(move || {
        for record in records {
            if sender.blocking_send(record).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A user who is not settled.
struct Pending {
    wanted: Wanted,
    attempts: u32,
    /// Not to be sent before.
    due: Instant,
}

struct Run {
    records: mpsc::Receiver<io::Result<Record>>,
    all_read: bool,
    done: Done,
    /// To be sent, by the number of the record, which is the sequence in the stream.
    waiting: BTreeMap<u64, Pending>,
    /// Sent over the present stream and not answered.
    sent: BTreeMap<u64, Pending>,
    lines: mpsc::Sender<String>,
    counts: Counts,
    progress: Progress,
    /// When the last answer came.
    settled: Instant,
    max_attempts: u32,
}

/// Why a run ends before everybody is settled, or `Ok`.
type End = Result<(), String>;

impl Run {
    async fn all(&mut self, channel: Connection, args: &BulkArgs, stop: &Stop) -> End {
        let mut client = SignOutServiceClient::new(channel);
        let mut pause = Duration::from_millis(100);
        loop {
            let before = self.counts.settled();
            let (sender, requests) = mpsc::channel(WINDOW);
            let opened = timeout(
                args.client.timeout,
                client.bulk_admin_user_global_sign_out(ReceiverStream::new(requests)),
            );
            let opened = tokio::select! {
                opened = opened => opened.unwrap_or_else(|_| Err(Status::unavailable("the sidecar does not answer"))),
                () = stop.asked() => return Err("ended before it was done".to_owned()),
            };
            let broken = match opened {
                Ok(stream) => match self.converse(sender, stream.into_inner(), stop).await {
                    Conversation::Complete => return Ok(()),
                    Conversation::Ended(why) => return Err(why),
                    Conversation::Broken(status) => status,
                },
                Err(status) => status,
            };
            // What was sent and not answered is sent again: a sign-out may be repeated.
            self.waiting.append(&mut self.sent);

            if matches!(
                broken.code(),
                Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument
            ) {
                return Err(print::describe(&broken).trim_end().to_owned());
            }
            if self.counts.settled() > before {
                pause = Duration::from_millis(100);
            }
            if self.settled.elapsed() + pause > args.give_up_after {
                return Err(format!("gave up: {}", print::describe(&broken).trim_end()));
            }
            self.progress.say(&format!("the stream broke, trying again: {}", broken.message()));
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.asked() => return Err("ended before it was done".to_owned()),
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// One stream, until everybody is settled or it breaks.
    async fn converse(
        &mut self,
        sender: mpsc::Sender<BulkAdminUserGlobalSignOutRequest>,
        mut stream: Streaming<BulkAdminUserGlobalSignOutResponse>,
        stop: &Stop,
    ) -> Conversation {
        let mut sender = Some(sender);
        let mut end = None;
        loop {
            let now = Instant::now();
            if end.is_none() {
                self.send_what_is_due(sender.as_ref(), now);
                if self.all_read && self.waiting.is_empty() && self.sent.is_empty() {
                    return Conversation::Complete;
                }
            }
            let room = end.is_none() && self.waiting.len() + self.sent.len() < WINDOW;
            let due = self.waiting.values().map(|pending| pending.due).min();
            tokio::select! {
                biased;
                message = stream.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(why) = self.take(message).await {
                            return Conversation::Ended(why);
                        }
                        if end.is_some() && self.sent.is_empty() {
                            return Conversation::Ended("ended before it was done".to_owned());
                        }
                    }
                    Ok(None) if end.is_some() => return Conversation::Ended("ended before it was done".to_owned()),
                    Ok(None) => return Conversation::Broken(Status::unavailable("the sidecar ended the stream")),
                    Err(status) => return Conversation::Broken(status),
                },
                () = stop.at_once() => return Conversation::Ended("ended at once".to_owned()),
                () = stop.asked(), if end.is_none() => {
                    self.progress.say("ending: waiting a moment for what is under way; Ctrl-C again ends at once");
                    sender = None;
                    end = Some(now + LAST_ANSWERS);
                    if self.sent.is_empty() {
                        return Conversation::Ended("ended before it was done".to_owned());
                    }
                }
                () = sleep_until(end.unwrap_or(now)), if end.is_some() => {
                    return Conversation::Ended("ended before it was done".to_owned());
                }
                record = self.records.recv(), if room && !self.all_read => match record {
                    Some(Ok(record)) => if let Err(why) = self.begin(record, now).await {
                        return Conversation::Ended(why);
                    },
                    Some(Err(error)) => return Conversation::Ended(format!("the input cannot be read: {error}")),
                    None => self.all_read = true,
                },
                () = sleep_until(due.unwrap_or(now)), if end.is_none() && due.is_some() => {}
            }
        }
    }

    /// As many as wait fit the channel, because both are bounded by the window.
    fn send_what_is_due(
        &mut self,
        sender: Option<&mpsc::Sender<BulkAdminUserGlobalSignOutRequest>>,
        now: Instant,
    ) {
        let Some(sender) = sender else { return };
        let due: BTreeSet<u64> = self
            .waiting
            .iter()
            .filter(|(_, pending)| pending.due <= now)
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in due {
            let Some(pending) = self.waiting.remove(&sequence) else { continue };
            let Wanted { user_pool_id, username } = pending.wanted.clone();
            let request = Some(AdminUserGlobalSignOutRequest { user_pool_id, username });
            // Refused only where the stream has broken, which its other half tells.
            _ = sender.try_send(BulkAdminUserGlobalSignOutRequest { sequence, request });
            self.sent.insert(sequence, pending);
        }
    }

    async fn begin(&mut self, record: Record, now: Instant) -> End {
        let Record { number, user } = record;
        match user {
            Ok(wanted) if self.done.contains(&wanted) => {
                self.counts.before += 1;
                self.progress.update(&self.counts);
                Ok(())
            }
            Ok(wanted) => {
                self.waiting.insert(number, Pending { wanted, attempts: 0, due: now });
                Ok(())
            }
            Err(why) => {
                let line =
                    json!({ "sequence": number, "status": "failed", "reason": "UNREADABLE", "message": why });
                self.settle(line, Some("UNREADABLE")).await
            }
        }
    }

    async fn take(&mut self, message: BulkAdminUserGlobalSignOutResponse) -> End {
        let BulkAdminUserGlobalSignOutResponse { sequence, outcome } = message;
        let Some(mut pending) = self.sent.remove(&sequence) else { return Ok(()) };
        let mut line = json!({
            "sequence": sequence,
            "user_pool_id": pending.wanted.user_pool_id,
            "username": pending.wanted.username,
        });
        let error = match outcome {
            Some(Outcome::Response(response)) => {
                line["status"] = "signed_out".into();
                line["aws_request_id"] = response.aws_request_id.into();
                line["signed_out_at"] = response.signed_out_at.map(|at| at.to_string()).into();
                return self.settle(line, None).await;
            }
            Some(Outcome::Error(error)) => {
                use prost::Message as _;
                Status::with_details(
                    Code::from_i32(error.code),
                    error.message.clone(),
                    error.encode_to_vec().into(),
                )
            }
            None => Status::internal("the sidecar gave no outcome"),
        };
        let details = error.get_error_details();
        let info = details.error_info();
        let metadata = |key: &str| info.and_then(|info| info.metadata.get(key)).cloned().unwrap_or_default();
        // What the sidecar did not send is no attempt: it is a matter of time.
        pending.attempts += u32::from(metadata("outcome") != "not_sent");
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        if metadata("retryable") == "true" && pending.attempts < self.max_attempts {
            pending.due = Instant::now() + delay.unwrap_or(Duration::from_secs(1));
            self.waiting.insert(sequence, pending);
            return Ok(());
        }
        let code = status::code_name(error.code());
        let reason = info.map_or_else(|| code.to_owned(), |info| info.reason.clone());
        line["status"] = "failed".into();
        line["code"] = code.into();
        line["reason"] = reason.clone().into();
        line["outcome"] = metadata("outcome").into();
        line["aws_request_id"] = details.request_info().map(|request| request.request_id.clone()).into();
        line["message"] = error.message().into();
        self.settle(line, Some(&reason)).await
    }

    async fn settle(&mut self, line: Value, failure: Option<&str>) -> End {
        self.settled = Instant::now();
        match failure {
            None => self.counts.signed_out += 1,
            Some(reason) => *self.counts.failed.entry(reason.to_owned()).or_default() += 1,
        }
        self.progress.update(&self.counts);
        // The writer ends early only by an error, which it tells itself.
        self.lines.send(line.to_string()).await.map_err(|_| "the results cannot be written".to_owned())
    }
}

enum Conversation {
    Complete,
    /// There is no going on, for this reason.
    Ended(String),
    Broken(Status),
}

/// Reads everything and says what a run would do. Exit status 0 if every record names a user.
fn dry_run(records: input::Records, done: &Done) -> ExitCode {
    const SHOWN: u64 = 10;
    let (mut pools, mut already, mut wrong) = (BTreeMap::<String, u64>::new(), 0, 0);
    for record in records {
        let Record { number, user } = match record {
            Ok(record) => record,
            Err(error) => return print::failure(format_args!("the input cannot be read: {error}")),
        };
        let checked = user.and_then(|wanted| {
            User::parse(&wanted.user_pool_id, &wanted.username).map(|_| wanted).map_err(|violations| {
                let told: Vec<_> =
                    violations.iter().map(|v| format!("{} {}", v.field, v.description)).collect();
                told.join("; ")
            })
        });
        match checked {
            Ok(wanted) if done.contains(&wanted) => already += 1,
            Ok(wanted) => *pools.entry(wanted.user_pool_id).or_default() += 1,
            Err(why) => {
                wrong += 1;
                if wrong <= SHOWN {
                    print::failure(format_args!("record {number}: {why}"));
                }
            }
        }
    }
    let mut text = format!("would sign out {}\n", pools.values().sum::<u64>());
    for (pool, users) in pools {
        let _ = writeln!(text, "  {users:>10}  in {pool}");
    }
    let _ = write!(text, "signed out already {already} (of {} results)\nmalformed {wrong}", done.len());
    print::answer(text);
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn summary(counts: &Counts, left: u64, complete: bool) -> String {
    let mut text =
        format!("{:<32} {:>10}\n{:<32} {:>10}", "outcome", "users", "signed out", counts.signed_out);
    if counts.before > 0 {
        let _ = write!(text, "\n{:<32} {:>10}", "signed out by an earlier run", counts.before);
    }
    for (reason, users) in &counts.failed {
        let _ = write!(text, "\n{reason:<32} {users:>10}");
    }
    if !complete {
        let _ = write!(text, "\n{:<32} {left:>10}", "not settled");
    }
    text
}

/// The command that goes on with this run: the same again, and `--resume`.
fn resume_command(results: &Path) -> String {
    let mut args: Vec<String> = env::args().collect();
    if !args.iter().any(|arg| arg == "--resume") {
        args.push("--resume".to_owned());
    }
    if !args.iter().any(|arg| arg.starts_with("--results")) {
        args.push(format!("--results={}", results.display()));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+".contains(c);
    let quoted = args.into_iter().map(|arg| {
        if !arg.is_empty() && arg.chars().all(plain) {
            arg
        } else {
            format!("'{}'", arg.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}
