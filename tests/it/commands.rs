//! The commands as a person or a script meets them: flags, variables, words and exit statuses.

use std::net::TcpListener;

use crate::{
    harness::{POOL, Sidecar, binary, run, text},
    scripted::{Reply, Scripted},
};

/// The one line on stderr of a command that fails at once.
fn refused(args: &[&str], env: &[(&str, &str)], status: i32) -> String {
    let output = run(args, env);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {told}");
    assert_eq!(told.lines().count(), 1, "{args:?}: {told}");
    assert_eq!(text(&output.stdout), "");
    told
}

#[test]
fn what_serve_cannot_do_is_one_line_that_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let free = "--admin-listen=127.0.0.1:0";

    let line = refused(&["serve", free, "--listen", &taken], &[], 1);
    assert!(line.contains(&taken) && line.contains("in use") && line.contains("--listen"), "{line}");
    let line = refused(&["serve", "--listen=127.0.0.1:0", "--admin-listen", &taken], &[], 1);
    assert!(line.contains("--admin-listen"), "{line}");
    let line = refused(&["serve", "--listen", "0.0.0.0:50051"], &[], 1);
    assert!(line.contains("--insecure-listen"), "{line}");
    let line = refused(&["serve", "--call-timeout", "soon"], &[], 2);
    assert!(line.contains("--call-timeout") && line.contains("500ms"), "{line}");
    let line = refused(&["serve", "--log-format", "xml"], &[], 2);
    assert!(line.contains("text, json"), "{line}");
    let line = refused(&["serve", "--lisen", "127.0.0.1:1"], &[], 2);
    assert!(line.contains("--listen"), "{line}");
    let line = refused(&["serve", "--drain-delay=30s"], &[], 1);
    assert!(line.contains("--drain-timeout"), "{line}");
}

#[test]
fn variables_are_checked_like_flags_and_named() {
    let line = refused(&["serve"], &[("COGNITO_SIGNOUT_MAX_ATTEMPTS", "many")], 2);
    assert!(line.contains("--max-attempts"), "{line}");
    let line = refused(&["serve"], &[("COGNITO_SIGNOUT_LISTEN", "127.0.0.1")], 2);
    assert!(line.contains("--listen"), "{line}");
}

#[tokio::test]
async fn variables_say_what_flags_say_and_those_of_kubernetes_say_nothing() {
    let upstream = Scripted::start(|_, _| Reply::aws_error(500, "InternalErrorException", "x")).await;
    let sidecar = Sidecar::at(&upstream.url())
        .env("COGNITO_SIGNOUT_MAX_ATTEMPTS", "2")
        .env("COGNITO_SIGNOUT_PORT", "tcp://10.0.0.1:50051")
        .env("COGNITO_SIGNOUT_SERVICE_HOST", "10.0.0.1")
        .env("COGNITO_SIGNOUT_PORT_50051_TCP_PROTO", "tcp")
        .env("COGNITO_SIGNOUT_NEVER_HEARD_OF", "x")
        .start()
        .await;
    sidecar.sign_out(POOL, "ada").await.unwrap_err();
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn help_tells_a_stranger_what_to_do() {
    let help = text(&run(&["--help"], &[]).stdout);
    for command in ["serve", "demo", "emulate", "sign-out", "health"] {
        assert!(help.contains(command), "{command}: {help}");
    }
    let help = text(&run(&["serve", "--help"], &[]).stdout);
    for told in ["--listen", "COGNITO_SIGNOUT_LISTEN", "127.0.0.1:50051", "AWS_PROFILE", "[default: 10s]"] {
        assert!(help.contains(told), "{told}: {help}");
    }
    assert_eq!(run(&["--version"], &[]).status.code(), Some(0));
    assert_eq!(run(&[], &[]).status.code(), Some(2));
}

#[tokio::test]
async fn sign_out_answers_on_stdout_and_fails_on_stderr_with_grpcurls_exit_status() {
    let upstream = Scripted::start(|_, request| match request.username().as_str() {
        "ada" => Reply::ok(),
        _ => Reply::aws_error(400, "UserNotFoundException", "User does not exist."),
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let sign_out = |username: &'static str| {
        let mut command = binary();
        command.args([
            "sign-out",
            "--user-pool-id",
            POOL,
            "--username",
            username,
            "--address",
            sidecar.address(),
        ]);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };

    let good = sign_out("ada").await.unwrap();
    assert_eq!(good.status.code(), Some(0));
    assert!(text(&good.stdout).starts_with("signed out at 20"), "{}", text(&good.stdout));
    assert_eq!(text(&good.stderr), "");

    let bad = sign_out("nobody").await.unwrap();
    assert_eq!(bad.status.code(), Some(64 + 5));
    assert_eq!(text(&bad.stdout), "");
    let told = text(&bad.stderr);
    assert!(
        told.starts_with("NOT_FOUND: ")
            && told.contains("USER_NOT_FOUND")
            && told.contains("outcome=refused"),
        "{told}"
    );
}

#[test]
fn clients_of_nobody_fail_as_unavailable() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let args = ["sign-out", "--user-pool-id", POOL, "--username", "ada", "--address", &unused];
    let output = run(&args, &[]);
    assert_eq!(output.status.code(), Some(64 + 14), "{}", text(&output.stderr));
    assert!(text(&output.stderr).starts_with("UNAVAILABLE: "), "{}", text(&output.stderr));
    assert_eq!(run(&["health", "--address", &unused], &[]).status.code(), Some(64 + 14));
    assert_eq!(run(&["health", "--address", "unix:/nonexistent/socket"], &[]).status.code(), Some(64 + 14));
}

#[tokio::test]
async fn health_is_an_exit_status() {
    let sidecar = Sidecar::before_nothing().start().await;
    let health = |args: &[&str]| {
        let output = run(&[&["health", "--address", sidecar.address()], args].concat(), &[]);
        (output.status.code(), text(&output.stdout))
    };
    assert_eq!(health(&[]), (Some(0), "SERVING\n".to_owned()));
    // NOT_FOUND: there is no such service.
    assert_eq!(health(&["--service", "nonsense"]).0, Some(64 + 5));

    let broken = Scripted::start(|_, _| Reply::http(500, "")).await;
    let upstream = Scripted::start(|_, _| unreachable!()).await;
    let sidecar = Sidecar::with_credentials_from(&broken, &upstream).start().await;
    let service =
        ["health", "--address", sidecar.address(), "--service", "cognito.signout.v1.SignOutService"];
    let output = run(&service, &[]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), "NOT_SERVING\n".to_owned()));
}

#[test]
fn the_demo_tells_its_story_and_ends_well() {
    let output = run(&["demo", "--once", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"], &[]);
    let story = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{story}{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    for told in [
        "Refresh Token has been revoked",
        "INVALID_REQUEST",
        "USER_NOT_FOUND",
        "USER_POOL_NOT_FOUND",
        "TOO_MANY_REQUESTS",
        "COGNITO_INTERNAL_ERROR",
    ] {
        assert!(story.contains(told), "{told}: {story}");
    }
    assert!(!story.contains('✗') && !story.contains('\u{1b}'), "{story}");
}

#[test]
fn the_demo_says_which_port_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let line = refused(&["demo", "--once", "--admin-listen=127.0.0.1:0", "--listen", &taken], &[], 1);
    assert!(line.contains(&taken) && line.contains("--listen"), "{line}");
}
