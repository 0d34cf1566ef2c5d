//! What must not leave the process: usernames, key ids, tokens, and for callers ARNs too.

/// Whether AWS's words may be passed on to a caller: they hold neither the username nor an ARN, an access key id, or
/// anything as long and unbroken as a token.
///
/// A short username is found in almost any sentence; the words are then withheld, which costs nothing but comfort.
pub(crate) fn may_be_shown(words: &str, username: &str) -> bool {
    let lower = words.to_lowercase();
    words.chars().count() <= 512
        && !words.contains(char::is_control)
        && !lower.contains(&username.to_lowercase())
        && !lower.contains("arn:")
        && !runs(words).any(|run| is_key_id(run) || is_token(run) || is_jumbled(run))
}

/// Whether `text` is an identifier that AWS made (a request id, an error code) and not something else put in its place.
pub(crate) fn is_identifier(text: &str, username: &str) -> bool {
    // Shorter usernames are found in random identifiers by chance.
    const TELLING: usize = 4;
    (1..=64).contains(&text.len())
        // As long as a secret access key.
        && text.len() != 40
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && !is_key_id(text)
        && (username.len() < TELLING || !text.to_lowercase().contains(&username.to_lowercase()))
}

/// The text for the log: the username, key ids and tokens blotted out; ARNs stay, because the operator needs them. One
/// line, whatever upstream wrote: nobody puts lines of his own into our log.
pub(crate) fn for_log(text: &str, username: &str) -> String {
    let mut text = if username.is_empty() { text.to_owned() } else { text.replace(username, "[username]") };
    text = text.replace(char::is_control, " ");
    let secret: Vec<String> =
        runs(&text).filter(|run| is_key_id(run) || is_token(run)).map(str::to_owned).collect();
    for run in secret {
        text = text.replace(&run, "[redacted]");
    }
    text
}

/// The unbroken stretches of a text that could be a key or a token.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=_-.".contains(c))).filter(|run| !run.is_empty())
}

/// AWS's unique identifiers are a prefix such as AKIA or ASIA and at least 12 more capitals and digits.
fn is_key_id(run: &str) -> bool {
    let Some(at) = run
        .find("AKIA")
        .or_else(|| run.find("ASIA"))
        .or_else(|| run.find("AROA"))
        .or_else(|| run.find("AIDA"))
    else {
        return false;
    };
    run[at..].bytes().take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit()).count() >= 16
}

/// Secret keys have 40 characters, tokens hundreds, JWTs begin with `eyJ`. Names of roles, hosts and resources that long
/// are made of shorter words.
fn is_token(run: &str) -> bool {
    run.starts_with("eyJ") || run.len() >= 100 || run.split(['.', '-', '_']).any(|word| word.len() >= 32)
}

/// What could be a token with hyphens and underscores: as long as a secret key, and nothing that a word would be.
fn is_jumbled(run: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| run.bytes().any(|byte| kind(&byte));
    run.len() >= 32 && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY00";

    #[test]
    fn cognitos_usual_words_may_be_shown() {
        for words in
            ["User does not exist.", "User pool us-east-1_AbCdEfGhI does not exist.", "Invalid value."]
        {
            assert!(may_be_shown(words, "ada@example.com"), "{words}");
        }
    }

    #[test]
    fn words_with_a_secret_may_not() {
        for words in [
            "User Ada@Example.com is odd",
            "User: arn:aws:sts::123456789012:assumed-role/x is not authorized",
            "key AKIAIOSFODNN7EXAMPLE",
            "keyAKIAIOSFODNN7EXAMPLE",
            "secret wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY00",
            "token eyJhbGciOi.x.y",
            "wrapped_wJalrXUtnFEMI/K7MDENG/bPxRfiCYCANARYCANA_up",
            "url-safe wJalrXUtnFEMI-K7MDENG_bPxRfiCYCANARYCANA",
            "two\nlines",
        ] {
            assert!(!may_be_shown(words, "ada@example.com"), "{words}");
        }
        assert!(!may_be_shown(&"long ".repeat(200), "ada"));
    }

    #[test]
    fn identifiers() {
        assert!(is_identifier("1f0c6e1c-5a3e-4d8f-9a55-000000000001", "ada"));
        assert!(is_identifier("UserNotFoundException", "ada"));
        assert!(!is_identifier(KEY_ID, "ada"));
        assert!(!is_identifier("arn:aws:iam::1", "ada"));
        assert!(!is_identifier("Lovelace", "lovelace"));
        assert!(!is_identifier("", "ada"));
    }

    #[test]
    fn the_log_keeps_the_arn_and_loses_the_rest() {
        let line = for_log(&format!("arn:aws:iam::1:role/x ada {KEY_ID} {SECRET}"), "ada");
        assert_eq!(line, "arn:aws:iam::1:role/x [username] [redacted] [redacted]");
        let wrapped = "_wJalrXUtnFEMI/K7MDENG/bPxRfiCYCANARYCANA_";
        assert!(!for_log(wrapped, "").contains("wJalr"));
        let role =
            "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_AdministratorAccess_0123456789abcdef/ada";
        assert_eq!(for_log(role, ""), role);
        assert_eq!(for_log("one\ntwo\x1b[31m", ""), "one two [31m");
    }
}
