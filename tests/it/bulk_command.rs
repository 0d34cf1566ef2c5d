//! `cognito-signout bulk`, as people run it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::{
    bulk::enforcing,
    harness::{POOL, Sidecar, binary, path_in, text},
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
