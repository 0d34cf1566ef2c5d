//! What the documents say is what the code does.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use cognito_signout::status;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Fails unless the document is just that; with `UPDATE_DOCS=1` in the environment, writes it.
pub(crate) fn assert_current(name: &str, text: &str) {
    #[expect(
        clippy::disallowed_methods,
        reason = "asked for by whoever runs the tests, not a setting of the product"
    )]
    let update = env::var_os("UPDATE_DOCS").is_some();
    if update {
        fs::write(path(name), text).unwrap();
    }
    let kept = fs::read_to_string(path(name)).unwrap_or_default();
    assert!(kept == text, "{name} is not current; run the test with UPDATE_DOCS=1 and read what changes");
}

/// The reasons in the README's error table, in its order.
pub(crate) fn reasons_of_the_readme() -> Vec<String> {
    rows_of_the_readme().into_iter().map(|(_, reason, _, _)| reason).collect()
}

/// Code, reason, fault and retryable of each row of the README's error table.
fn rows_of_the_readme() -> Vec<(String, String, String, String)> {
    let readme = fs::read_to_string(path("README.md")).unwrap();
    let table = readme.split_once("| reason | code |").expect("the error table").1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (cells[2].to_owned(), cells[1].trim_matches('`').to_owned(), cells[3].to_owned(), cells[4].to_owned())
    })
    .collect()
}

#[test]
fn the_readmes_error_table_is_the_codes() {
    let code: BTreeSet<_> = status::table()
        .map(|(code, reason, fault, retryable)| {
            let code = status::code_name(code).to_owned();
            (code, reason.to_owned(), fault.to_owned(), if retryable { "yes" } else { "no" }.to_owned())
        })
        .collect();
    let readme: BTreeSet<_> = rows_of_the_readme().into_iter().collect();
    assert_eq!(readme, code);
}
