use std::{fs, path::Path};

use super::*;
use crate::reload::Kept;

const POLICY: &str = r#"
[[callers]]
name = "web"
spiffe = ["spiffe://example.org/ns/shop/sa/web"]
pools = ["eu-central-1_Shop"]

[[callers]]
name = "jobs"
spiffe = ["spiffe://example.org/ns/jobs/*"]
dns = ["Jobs.example.org", "worker-*"]
pools = ["eu-central-1_*", "us-east-1_Shop"]

[[callers]]
name = "support"
token_files = ["support.token"]
# printf from-the-digest-0123456789 | sha256sum
token_sha256 = ["9e7b6ad3d2b9f0ae6d2fc9a3c7b9c3a3b3e8a7de4a4b8d5cf4a6d1a9c2a1f0e5"]
pools = ["*"]

[[callers]]
name = "neighbour"
uid = [1000, 1001]
pools = ["eu-central-1_Shop"]

[[callers]]
name = "nothing"
uid = [1002]
pools = []
"#;

fn access(policy: Option<&str>, allow_pools: &[&str], certificates: bool) -> Access {
    let policy = policy.map(|text| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("support.token"), "old-token-0123456789\n\n new-token-0123456789\n")
            .unwrap();
        load_text(dir.path(), text).unwrap().current()
    });
    Access {
        policy,
        certificates,
        allow_pools: allow_pools.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

fn load_text(dir: &Path, text: &str) -> Result<Kept<Policy>, String> {
    let path = dir.join("policy.toml");
    fs::write(&path, text).unwrap();
    Kept::load("the policy", move |files| load(&path, files))
}

fn unix(uid: u32) -> Peer {
    Peer::Unix { uid }
}

fn spiffe(id: &str) -> Peer {
    Peer::Tls(Some(CertificateNames { spiffe: Some(id.to_owned()), dns: Vec::new() }))
}

fn dns(names: &[&str]) -> Peer {
    let dns = names.iter().map(|name| (*name).to_owned()).collect();
    Peer::Tls(Some(CertificateNames { spiffe: None, dns }))
}

const NEAR: Peer = Peer::Plain { loopback: true };
const FAR: Peer = Peer::Plain { loopback: false };
const NO_CERTIFICATE: Peer = Peer::Tls(None);

/// Who calls, and whether that caller may touch the pool.
fn decide(
    access: &Access,
    peer: Peer,
    authorization: Option<&str>,
    pool: &str,
) -> Result<String, Unidentified> {
    let caller = access.identify(&Presented::new(Arc::new(peer), authorization.map(str::as_bytes)))?;
    let allowed = access.allows(&caller, &UserPoolId::parse(pool).unwrap());
    let name = caller.name().unwrap_or("somebody");
    Ok(format!("{name} {}", if allowed { "may" } else { "may not" }))
}

#[test]
fn who_calls_and_which_pools_that_caller_may_touch() {
    use Unidentified::*;

    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"from-the-digest-0123456789");
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    let policy = POLICY.replace("9e7b6ad3d2b9f0ae6d2fc9a3c7b9c3a3b3e8a7de4a4b8d5cf4a6d1a9c2a1f0e5", &hex);
    let access = access(Some(&policy), &[], true);

    const SHOP: &str = "eu-central-1_Shop";
    const OTHER: &str = "eu-central-1_Other";
    const FOREIGN: &str = "us-east-1_Other";
    let old = Some("Bearer old-token-0123456789");
    for (peer, authorization, pool, told) in [
        // SPIFFE, exact and by prefix.
        (spiffe("spiffe://example.org/ns/shop/sa/web"), None, SHOP, Ok("web may")),
        (spiffe("spiffe://example.org/ns/shop/sa/web"), None, OTHER, Ok("web may not")),
        (spiffe("spiffe://example.org/ns/shop/sa/web2"), None, SHOP, Err(UnknownCertificate)),
        (spiffe("spiffe://example.com/ns/shop/sa/web"), None, SHOP, Err(UnknownCertificate)),
        (spiffe("spiffe://example.org/ns/jobs/sa/night"), None, OTHER, Ok("jobs may")),
        (spiffe("spiffe://example.org/ns/jobs/sa/night"), None, "us-east-1_Shop", Ok("jobs may")),
        (spiffe("spiffe://example.org/ns/jobs/sa/night"), None, FOREIGN, Ok("jobs may not")),
        (spiffe("spiffe://example.org/ns/jobs"), None, SHOP, Err(UnknownCertificate)),
        // DNS names: any of them will do, and case does not count.
        (dns(&["jobs.example.org"]), None, SHOP, Ok("jobs may")),
        (dns(&["elsewhere", "worker-7.example.org"]), None, SHOP, Ok("jobs may")),
        (dns(&["jobs.example.org.evil.example"]), None, SHOP, Err(UnknownCertificate)),
        (dns(&[]), None, SHOP, Err(UnknownCertificate)),
        // Tokens: every one of a rotation, wherever nobody else can read them.
        (NEAR, old, FOREIGN, Ok("support may")),
        (NEAR, Some("Bearer new-token-0123456789"), FOREIGN, Ok("support may")),
        (NEAR, Some("Bearer from-the-digest-0123456789"), FOREIGN, Ok("support may")),
        (NEAR, Some("bearer  old-token-0123456789 "), FOREIGN, Ok("support may")),
        (NO_CERTIFICATE, old, FOREIGN, Ok("support may")),
        (unix(4711), old, FOREIGN, Ok("support may")),
        (FAR, old, FOREIGN, Err(TokenInTheClear)),
        (NEAR, Some("Bearer old-token-012345678"), SHOP, Err(UnknownToken)),
        (NEAR, Some("Bearer old-token-01234567890"), SHOP, Err(UnknownToken)),
        (NEAR, Some("Bearer OLD-TOKEN-0123456789"), SHOP, Err(UnknownToken)),
        (NEAR, Some("Bearer"), SHOP, Err(Nothing)),
        (NEAR, Some("Bearer "), SHOP, Err(Nothing)),
        (NEAR, Some("Basic old-token-0123456789"), SHOP, Err(Nothing)),
        (NEAR, Some("old-token-0123456789"), SHOP, Err(Nothing)),
        // The user of a process.
        (unix(1000), None, SHOP, Ok("neighbour may")),
        (unix(1001), None, OTHER, Ok("neighbour may not")),
        (unix(0), None, SHOP, Err(UnknownUid)),
        (unix(1002), None, SHOP, Ok("nothing may not")),
        // Several: any is enough, and of two callers the first is meant.
        (spiffe("spiffe://example.org/ns/shop/sa/web"), old, FOREIGN, Ok("web may not")),
        (unix(1000), old, FOREIGN, Ok("support may")),
        (unix(1000), Some("Bearer wrong"), SHOP, Ok("neighbour may")),
        (spiffe("spiffe://example.org/elsewhere"), old, FOREIGN, Ok("support may")),
        (spiffe("spiffe://example.org/elsewhere"), Some("Bearer wrong"), SHOP, Err(UnknownToken)),
        // Nothing at all.
        (NEAR, None, SHOP, Err(Nothing)),
        (FAR, None, SHOP, Err(Nothing)),
        (NO_CERTIFICATE, None, SHOP, Err(Nothing)),
    ] {
        let what = format!("{peer:?} {authorization:?} {pool}");
        assert_eq!(decide(&access, peer, authorization, pool), told.map(str::to_owned), "{what}");
    }
}

#[test]
fn without_a_policy_everybody_may_unless_certificates_are_demanded() {
    let open = access(None, &[], false);
    for (peer, name) in [
        (unix(7), "uid:7"),
        (spiffe("spiffe://example.org/a"), "spiffe://example.org/a"),
        (dns(&["a.example.org", "b"]), "a.example.org"),
        (NO_CERTIFICATE, "somebody"),
        (NEAR, "somebody"),
        (FAR, "somebody"),
    ] {
        assert_eq!(decide(&open, peer, None, "us-east-1_A"), Ok(format!("{name} may")));
    }
    let demanding = access(None, &[], true);
    assert_eq!(decide(&demanding, unix(7), None, "us-east-1_A"), Ok("uid:7 may".to_owned()));
    assert_eq!(decide(&demanding, dns(&[]), None, "us-east-1_A"), Ok("somebody may".to_owned()));
    for peer in [NO_CERTIFICATE, NEAR, FAR] {
        let refused = decide(&demanding, peer, Some("Bearer x"), "us-east-1_A");
        assert_eq!(refused, Err(Unidentified::NoCertificate));
    }
}

#[test]
fn the_pools_of_the_sidecar_bound_those_of_every_caller() {
    let shop = ["eu-central-1_Shop", "us-*"];
    for (access, peer, pool, told) in [
        (access(None, &shop, false), NEAR, "eu-central-1_Shop", "somebody may"),
        (access(None, &shop, false), NEAR, "us-east-1_Any", "somebody may"),
        (access(None, &shop, false), NEAR, "eu-central-1_Other", "somebody may not"),
        (access(Some(POLICY), &shop, false), dns(&["worker-1"]), "eu-central-1_Shop", "jobs may"),
        (access(Some(POLICY), &shop, false), dns(&["worker-1"]), "eu-central-1_Other", "jobs may not"),
        (access(Some(POLICY), &shop, false), dns(&["worker-1"]), "us-east-1_Other", "jobs may not"),
    ] {
        assert_eq!(decide(&access, peer, None, pool), Ok(told.to_owned()), "{pool}");
    }
}

#[test]
fn what_is_wrong_with_a_policy_is_told_in_one_line_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty.token"), "\n \n").unwrap();
    fs::write(dir.path().join("two.token"), "a token of words").unwrap();
    let caller = |line: &str| format!("[[callers]]\nname = \"a\"\nuid = [1]\npools = [\"*\"]\n{line}");
    for (text, place, told) in [
        ("".to_owned(), "policy.toml ", "names no caller"),
        ("[[caller]]".to_owned(), ":1:3: ", "unknown field `caller`"),
        ("[[callers]\n".to_owned(), ":1:", ""),
        (caller("color = 3"), ":5:1: ", "unknown field `color`"),
        (caller("uid = [2]"), ":5:1: ", "duplicate key"),
        (caller("spiffe = \"a\""), ":5:10: ", "expected a sequence"),
        (caller("spiffe = [\"web\"]"), ":5:11: ", "no SPIFFE ID"),
        (caller("spiffe = [\"spiffe://a/b\",\n  \"spiffe://a*\"]"), ":6:3: ", "has to be whole"),
        (caller("spiffe = [\"spiffe://a/*/b\"]"), ":5:11: ", "ends in one *"),
        (caller("dns = [\"*.example.org\"]"), ":5:8: ", "ends in one *"),
        (caller("dns = [\"\"]"), ":5:8: ", "may not be empty"),
        (caller("token_sha256 = [\"secret\"]"), ":5:17: ", "64 hexadecimal digits"),
        (caller("token_files = [\"gone.token\"]"), ":5:16: ", "cannot be read"),
        (caller("token_files = [\"empty.token\"]"), ":5:16: ", "there is no token"),
        (caller("token_files = [\"two.token\"]"), ":5:16: ", "no header can carry"),
        (caller("").replace("[1]", "[-1]"), ":3:8: ", "u32"),
        (caller("").replace("uid = [1]\n", ""), ":2:8: ", "nothing tells how to know"),
        (caller("").replace("pools = [\"*\"]\n", ""), ":1:1: ", "missing field `pools`"),
        (caller("").replace("\"a\"", "\"a b\""), ":2:8: ", "without spaces"),
        (caller("") + &caller(""), ":6:8: ", "has this name already"),
    ] {
        let error = load_text(dir.path(), &text).map(|_| ()).unwrap_err();
        assert!(error.contains(place) && error.contains(told), "{text}\n{error}");
        assert!(!error.contains('\n') && !error.contains("secret"), "{error}");
    }
}

#[test]
fn a_token_that_can_be_guessed_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("short.token"), "secret").unwrap();
    let text = "[[callers]]\nname = \"a\"\ntoken_files = [\"short.token\"]\npools = [\"*\"]";
    let policy = load_text(dir.path(), text).unwrap().current();
    assert!(policy.borrow().warnings()[0].contains("shorter than 16"));
    assert!(policy.borrow().has_tokens() && !policy.borrow().has_certificates());
}
