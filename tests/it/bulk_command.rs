//! `cognito-signout bulk`, as people run it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::Value;
use tokio::{sync::watch, time::timeout};

use crate::{
    bulk::enforcing,
    harness::{PATIENCE, POOL, Sidecar, binary, path_in, text},
    scripted::{Gate, Reply, Scripted},
};

fn results(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Who is signed out according to the file.
fn signed_out(path: &str) -> HashSet<String> {
    let results = results(path);
    let good = results.iter().filter(|line| line["status"] == "signed_out");
    good.map(|line| line["username"].as_str().unwrap().to_owned()).collect()
}

fn bulk(sidecar: &Sidecar, file: &str, more: &[&str]) -> std::process::Command {
    let mut command = binary();
    command.args(["bulk", "--user-pool-id", POOL, "--file", file, "--address", sidecar.address()]).args(more);
    command
}

async fn output(mut command: std::process::Command) -> std::process::Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn what_cannot_be_done_is_told_and_a_second_run_repeats_only_that() {
    let upstream = Scripted::start(|n, request| match request.username().as_str() {
        "nobody" => Reply::aws_error(400, "UserNotFoundException", "User does not exist."),
        // Cognito's trouble passes, but not within the sidecar's own attempts.
        "later" if n < 6 => Reply::aws_error(500, "InternalErrorException", "Oops"),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let dir = tempfile::tempdir().unwrap();
    let file = path_in(&dir, "users.csv");
    fs::write(
        &file,
        format!("username,user_pool_id\nada,\nnobody,{POOL}\nlater,\n\"with,comma\",us-west-2_Other\n"),
    )
    .unwrap();
    let written = format!("{file}.results.jsonl");

    let first = output(bulk(&sidecar, &file, &[])).await;
    let told = text(&first.stdout) + &text(&first.stderr);
    assert_eq!(first.status.code(), Some(1), "{told}");
    assert!(told.contains("USER_NOT_FOUND") && told.contains("--resume"), "{told}");
    assert_eq!(signed_out(&written), HashSet::from(["ada", "later", "with,comma"].map(str::to_owned)));
    let nobody = results(&written).into_iter().find(|line| line["username"] == "nobody").unwrap();
    assert_eq!(
        (&nobody["reason"], &nobody["outcome"], &nobody["sequence"]),
        (&"USER_NOT_FOUND".into(), &"refused".into(), &2.into())
    );

    // Results are never written over.
    assert_eq!(output(bulk(&sidecar, &file, &[])).await.status.code(), Some(2));

    let before = upstream.requests().len();
    let second = output(bulk(&sidecar, &file, &["--resume"])).await;
    assert_eq!(second.status.code(), Some(1));
    let repeated: Vec<_> = upstream.requests()[before..].iter().map(|request| request.username()).collect();
    assert_eq!(repeated, ["nobody"]);
}

#[tokio::test]
async fn killed_three_times_and_resumed_it_signs_out_everybody_and_repeats_only_what_was_under_way() {
    const USERS: usize = 800;
    let (upstream, _) = enforcing(1000.0, 1000.0).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--quota-rps", 100).start().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, written) = (path_in(&dir, "users.txt"), path_in(&dir, "results.jsonl"));
    let users: Vec<String> = (0..USERS).map(|n| format!("user{n}")).collect();
    fs::write(&file, users.join("\n")).unwrap();
    let args = ["--results", written.as_str(), "--resume"];

    for part in 1..=3 {
        let mut child: Child =
            bulk(&sidecar, &file, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        upstream.wait_for_requests(part * USERS / 5).await;
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let last = output(bulk(&sidecar, &file, &args)).await;
    assert_eq!(last.status.code(), Some(0), "{}", text(&last.stderr));

    assert_eq!(signed_out(&written), users.iter().cloned().collect::<HashSet<_>>());
    let mut seen = HashMap::<String, usize>::new();
    for request in upstream.requests() {
        *seen.entry(request.username()).or_default() += 1;
    }
    assert_eq!(seen.len(), USERS, "none lost");
    let repeated: usize = seen.values().map(|times| times - 1).sum();
    println!("repeated={repeated}");
    // At most what was at Cognito, or answered and not yet written, when it was killed.
    assert!(repeated <= 3 * 30, "{repeated}");
}

#[tokio::test]
async fn a_sidecar_that_is_replaced_does_not_end_the_run_and_a_stop_ends_it_cleanly() {
    let gate = Gate::closed();
    let upstream = {
        let gate = gate.clone();
        Scripted::start(move |n, _| if n < 5 { Reply::ok() } else { Reply::ok().after(&gate) }).await
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", path_in(&dir, "api.sock"));
    let start = async || Sidecar::at(&upstream.url()).arg("--listen", &socket).start().await;
    let sidecar = start().await;
    let (file, written) = (path_in(&dir, "users.txt"), path_in(&dir, "results.jsonl"));
    fs::write(&file, (0..20).map(|n| format!("user{n}\n")).collect::<String>()).unwrap();
    let mut command = bulk(&sidecar, &file, &["--results", &written]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

    upstream.wait_for_requests(6).await;
    drop(sidecar);
    let _second = start().await;
    // Five were answered, and what was not is sent anew to the second.
    upstream.wait_for_requests(12).await;
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let told = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("to go on: ") && told.contains(" --resume"), "{told}");
    assert!(signed_out(&written).len() >= 5);
    gate.open();
}

#[tokio::test]
async fn a_dry_run_signs_nobody_out_and_needs_no_sidecar() {
    let dir = tempfile::tempdir().unwrap();
    let file = path_in(&dir, "users.txt");
    fs::write(&file, "ada\nbob\nwith space\n").unwrap();
    let dry = |pool: &'static str| {
        let mut command = binary();
        command.args([
            "bulk",
            "--dry-run",
            "--user-pool-id",
            pool,
            "--file",
            &file,
            "--address",
            "127.0.0.1:1",
        ]);
        command
    };
    let told = output(dry(POOL)).await;
    assert_eq!(told.status.code(), Some(1));
    assert!(text(&told.stdout).contains("would sign out 2"), "{}", text(&told.stdout));
    assert!(text(&told.stderr).contains("record 3: username"), "{}", text(&told.stderr));
    assert!(!fs::exists(format!("{file}.results.jsonl")).unwrap());
}

#[tokio::test]
async fn users_come_from_standard_input_as_text_or_json_lines() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--quota-rps", 1000).start().await;
    let dir = tempfile::tempdir().unwrap();
    for (format, input, expected) in [
        (None, "ada\nbob\n".to_owned(), vec!["ada", "bob"]),
        (
            Some("jsonl"),
            format!("\"ada\"\n{{\"username\":\"carol\",\"user_pool_id\":\"{POOL}\"}}\n"),
            vec!["ada", "carol"],
        ),
    ] {
        let written = path_in(&dir, &format!("{}.jsonl", format.unwrap_or("text")));
        let mut command = bulk(&sidecar, "-", &["--results", &written]);
        command.args(format.map(|format| format!("--format={format}")));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Dropped when it is written, which is the end of the input.
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();

        assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
        assert_eq!(signed_out(&written), expected.into_iter().map(str::to_owned).collect::<HashSet<_>>());
    }
    let nameless = output(bulk(&sidecar, "-", &[])).await;
    assert_eq!(nameless.status.code(), Some(2));
    assert!(text(&nameless.stderr).contains("--results"), "{}", text(&nameless.stderr));
}

/// Three users are settled at once, one of them does not exist; the other two are answered as `reply` says.
async fn five_users(reply: impl Fn() -> Reply + Send + Sync + 'static) -> (Scripted, Sidecar) {
    let upstream = Scripted::start(move |_, request| match request.username().as_str() {
        "nobody" => Reply::aws_error(400, "UserNotFoundException", "User does not exist."),
        "ada" | "bob" => Reply::ok(),
        _ => reply(),
    })
    .await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--quota-rps", 1000).start().await;
    (upstream, sidecar)
}

const FIVE: &str = "ada\nbob\nnobody\ncarol\ndave\n";

#[tokio::test]
async fn where_there_is_no_terminal_progress_is_told_in_lines() {
    let (_upstream, sidecar) = five_users(|| Reply::ok().delayed(Duration::from_millis(1_200))).await;
    let dir = tempfile::tempdir().unwrap();
    let file = path_in(&dir, "users.txt");
    fs::write(&file, FIVE).unwrap();

    let ended = output(bulk(&sidecar, &file, &[])).await;

    let told = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    // Of the two that came late the first is told; the next line would be told ten seconds later.
    let line = told.lines().find(|line| line.contains("/s, ")).unwrap_or_else(|| panic!("{told}"));
    assert!(
        line.starts_with("4 of 5, ") && line.contains(" s to go: 3 signed out, 1 USER_NOT_FOUND"),
        "{line}"
    );
    assert!(!told.contains('\u{1b}') && !told.contains('\r'), "{told:?}");
}

/// A terminal of 120 columns: what is written to it can be read. `None` where the machine gives none.
fn terminal() -> Option<(OwnedFd, fs::File)> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).ok()?;
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&controller, size).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    Some((controller, fs::File::options().read(true).write(true).open(path).ok()?))
}

#[tokio::test]
async fn on_a_terminal_a_bar_shows_rate_estimate_and_counts_by_outcome() {
    let Some((controller, user_side)) = terminal() else {
        // Past the capture of the test harness, which shows what a passing test prints to nobody.
        let _ = writeln!(
            io::stderr(),
            "LEFT OUT: the progress bar needs a pseudo-terminal, and there is none here"
        );
        return;
    };
    let gate = Gate::closed();
    let held = gate.clone();
    let (_upstream, sidecar) = five_users(move || Reply::ok().after(&held)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = path_in(&dir, "users.txt");
    fs::write(&file, FIVE).unwrap();
    let child = {
        let mut command = bulk(&sidecar, &file, &[]);
        command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(user_side).spawn().unwrap()
        // With the command our own handle of the user's side goes, so that the terminal ends with the child.
    };
    let (shown, mut shows) = watch::channel(String::new());
    thread::spawn(move || {
        let (mut controller, mut bytes) = (fs::File::from(controller), [0; 4096]);
        // An error is the end: nobody holds the user's side any more.
        while let Ok(read @ 1..) = controller.read(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
            shown.send_modify(|shown| shown.push_str(&text));
        }
    });

    let stands = |shown: &String| {
        let line = shown.rsplit(['\r', '\n']).find(|line| line.contains("3/5")).unwrap_or_default();
        line.contains("/s ETA ") && line.contains("· 2 signed out, 1 USER_NOT_FOUND")
    };
    let waiting = timeout(PATIENCE, shows.wait_for(stands)).await.map(|found| found.is_ok());
    assert_eq!(waiting.ok(), Some(true), "{:?}", shows.borrow());
    assert!(shows.borrow().contains('█'), "no bar: {:?}", shows.borrow());
    gate.open();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let summary = text(&ended.stdout);
    assert!(summary.contains("signed out") && summary.contains("USER_NOT_FOUND"), "{summary}");
}
