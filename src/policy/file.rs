//! The policy file: TOML, and nothing in it that is not understood.

use std::{
    collections::HashSet,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

use super::{Caller, Entry, Policy, Pools, TokenDigest};
use crate::{pattern::Pattern, reload::Files};

/// Shorter tokens can be guessed, or are words.
const SHORTEST_TOKEN: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    callers: Vec<FileCaller>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCaller {
    name: Spanned<String>,
    #[serde(default)]
    spiffe: Vec<Spanned<String>>,
    #[serde(default)]
    dns: Vec<Spanned<String>>,
    #[serde(default)]
    token_files: Vec<Spanned<PathBuf>>,
    #[serde(default)]
    token_sha256: Vec<Spanned<String>>,
    #[serde(default)]
    uid: Vec<u32>,
    pools: Vec<Spanned<String>>,
}

/// Reads and checks a policy, with the files of tokens that it names. An error is one line that says where.
pub fn load(path: &Path, files: &mut Files) -> Result<Policy, String> {
    let text = String::from_utf8(files.read(path)?)
        .map_err(|_| format!("{} is not a policy: it is not text in UTF-8", path.display()))?;
    let at = &|span: Range<usize>, message: &str| {
        let (line, column) = position(&text, span.start);
        format!("{}:{line}:{column}: {message}", path.display())
    };

    let file: File = toml::from_str(&text).map_err(|error| {
        // Some messages have several lines.
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        at(error.span().unwrap_or_default(), &message.join("; "))
    })?;
    if file.callers.is_empty() {
        return Err(format!(
            "{} names no caller, so nobody could call; write at least one [[callers]]",
            path.display()
        ));
    }

    let mut names = HashSet::new();
    let mut warnings = Vec::new();
    let mut callers = Vec::new();
    for caller in file.callers {
        let FileCaller { name, spiffe, dns, token_files, token_sha256, uid, pools } = caller;
        let wrong = |message: &str| Err(at(name.span(), message));
        if name.get_ref().is_empty()
            || name.get_ref().len() > 64
            || !name.get_ref().bytes().all(|b| b.is_ascii_graphic())
        {
            return wrong(
                "a caller's name has 1 to 64 ASCII characters, without spaces, for it goes into the log",
            );
        }
        if !names.insert(name.get_ref().clone()) {
            return wrong("another caller has this name already");
        }
        if spiffe.is_empty()
            && dns.is_empty()
            && token_files.is_empty()
            && token_sha256.is_empty()
            && uid.is_empty()
        {
            return wrong(
                "nothing tells how to know this caller: give it spiffe, dns, token_files, token_sha256 or uid",
            );
        }
        let mut tokens = parsed(&token_sha256, token_digest, at)?;
        for file in token_files {
            let span = file.span();
            // Beside the policy, if it is not told in full.
            let file = path.parent().unwrap_or(Path::new("")).join(file.into_inner());
            let read = read_tokens(&file, files).map_err(|error| at(span, &error))?;
            if read.iter().any(|(_, length)| *length < SHORTEST_TOKEN) {
                warnings.push(format!(
                    "a token in {} is shorter than {SHORTEST_TOKEN} characters, so it can be guessed",
                    file.display()
                ));
            }
            tokens.extend(read.into_iter().map(|(digest, _)| digest));
        }
        callers.push(Entry {
            caller: Caller {
                name: Some(name.into_inner().into()),
                pools: Pools::These(parsed(&pools, pattern, at)?.into()),
            },
            spiffe: parsed(&spiffe, spiffe_pattern, at)?,
            // Case means nothing in a DNS name.
            dns: parsed(&dns, |name| pattern(&name.to_ascii_lowercase()), at)?,
            tokens,
            uids: uid,
        });
    }
    Ok(Policy { callers, warnings })
}

/// The digests of the tokens in a file, one a line, with their lengths.
fn read_tokens(path: &Path, files: &mut Files) -> Result<Vec<(TokenDigest, usize)>, String> {
    let contents = files.read(path)?;
    let lines = contents.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut tokens = Vec::new();
    for token in lines.filter(|line| !line.is_empty()) {
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(format!("{} has a token that no header can carry", path.display()));
        }
        tokens.push((TokenDigest::of(token), token.len()));
    }
    if tokens.is_empty() {
        return Err(format!("there is no token in {}", path.display()));
    }
    Ok(tokens)
}

/// Line and column of a byte, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// All of a list, or what is wrong with the first that is wrong, and where.
fn parsed<T>(
    list: &[Spanned<String>],
    parse: impl Fn(&str) -> Result<T, String>,
    at: impl Fn(Range<usize>, &str) -> String,
) -> Result<Vec<T>, String> {
    let parse = |text: &Spanned<String>| parse(text.get_ref()).map_err(|error| at(text.span(), &error));
    list.iter().map(parse).collect()
}

fn pattern(text: &str) -> Result<Pattern, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn spiffe_pattern(text: &str) -> Result<Pattern, String> {
    let rest = text.strip_prefix("spiffe://");
    match rest.map(|rest| rest.split_once('/').map_or(rest, |(domain, _)| domain)) {
        None if text == "*" => {}
        Some(domain) if !domain.is_empty() && !domain.contains('*') => {}
        // spiffe://example.org* would mean spiffe://example.org.somebody.else/ as well.
        Some(_) => return Err(format!("the trust domain of {text:?} has to be whole: spiffe://DOMAIN/PATH")),
        None => return Err(format!("{text:?} is no SPIFFE ID, such as spiffe://example.org/ns/shop/sa/web")),
    }
    pattern(text)
}

fn token_digest(text: &str) -> Result<TokenDigest, String> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Option<Vec<u8>> = text.as_bytes().iter().map(digit).collect();
    let bytes =
        digits.map(|digits| digits.chunks(2).map(|pair| pair[0] << 4 | pair[pair.len() - 1]).collect());
    // The text is not repeated: it may be the token itself, put in the wrong place.
    let bytes = bytes.filter(|_| text.len() == 64).and_then(|bytes: Vec<u8>| bytes.try_into().ok());
    bytes.map(TokenDigest).ok_or_else(|| "a SHA-256 is 64 hexadecimal digits".to_owned())
}
