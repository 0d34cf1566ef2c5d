//! What people and scripts read: answers on stdout, failures on stderr, and the exit status.

use std::{
    fmt::{Display, Write as _},
    io::{self, Write as _},
    process::ExitCode,
};

use tonic::Status;
use tonic_types::StatusExt as _;

use crate::status;

/// An answer, on stdout.
pub(super) fn answer(text: impl Display) {
    // A reader that has gone away is no failure of ours.
    let _ = writeln!(io::stdout(), "{text}");
}

/// A failure that is no status: one line on stderr, exit status 1.
pub fn failure(error: impl Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "cognito-signout: {error}");
    ExitCode::FAILURE
}

/// Wrong usage: one line on stderr, exit status 2. Help and version are answers.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let _ = writeln!(io::stderr(), "cognito-signout: {}", one_line(&error.to_string()));
    ExitCode::from(2)
}

/// Wrong usage that clap cannot see: one line on stderr, exit status 2.
pub(super) fn wrong_usage(error: impl Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "cognito-signout: {error}");
    ExitCode::from(2)
}

/// clap's several lines as one, without the usage, which `--help` has.
fn one_line(text: &str) -> String {
    let told = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<&str> = told.filter(|line| !line.is_empty()).collect();
    let text = words.join(" ");
    format!("{} (see --help)", text.strip_prefix("error: ").unwrap_or(&text))
}

/// A status: on stderr with what a person needs of its details; exit status 64 and the code, as grpcurl has it.
pub(super) fn status(status: &Status) -> ExitCode {
    let _ = write!(io::stderr(), "{}", describe(status));
    ExitCode::from(64 + u8::try_from(i32::from(status.code())).unwrap_or(2))
}

/// A status in several lines, with the details that it has.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = format!("{}: {}\n", status::code_name(status.code()), status.message());
    let details = status.get_error_details();
    if let Some(info) = details.error_info() {
        let mut metadata: Vec<_> =
            info.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        metadata.sort();
        let _ = writeln!(text, "  reason: {} ({})", info.reason, metadata.join(", "));
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        let _ = writeln!(text, "  retry after: {:.3} s", delay.as_secs_f64());
    }
    if let Some(request) = details.request_info() {
        let _ = writeln!(text, "  AWS request id: {}", request.request_id);
    }
    for violation in details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default() {
        let _ = writeln!(text, "  {}: {}", violation.field, violation.description);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::Cli;

    #[test]
    fn wrong_usage_is_one_line() {
        for args in [
            &["serve", "--listen", "nonsense"][..],
            &["serve", "--lisen", "x"],
            &["serve", "--log-format", "xml"],
            &["sign-out"],
            &["frobnicate"],
        ] {
            let error = Cli::try_parse_from([&["cognito-signout"], args].concat()).unwrap_err();
            let line = one_line(&error.to_string());
            assert!(!line.contains('\n') && !line.starts_with("error"), "{line}");
            assert!(line.len() > 30, "{line}");
        }
    }
}
