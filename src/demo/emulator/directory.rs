//! Who exists, and which of their tokens still work.
//!
//! No token is stored. Each is authenticated by a key that lives as long as the process, and carries the
//! number of sign-outs its user had seen when it was issued: it works while that is still the number. So memory
//! is bounded by the number of usernames, however many sign-ins there are.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_smithy_types::base64;
use serde_json::{Value, json};

use super::seed::{POOLS, SPECIAL_PASSWORD, SeededPool, Special, USERS};

/// The life of access and ID tokens, in seconds.
pub(super) const ACCESS_LIFETIME: u64 = 3600;
/// The life of refresh tokens, in seconds: Cognito's default of 30 days.
const REFRESH_LIFETIME: u64 = 30 * 24 * 3600;
/// The prefix of the key id in a token's header; the number of sign-outs follows.
const KEY_ID: &str = "emulator-";

/// A user of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub(super) pool: &'static str,
    pub(super) username: String,
    pub(super) password: &'static str,
    pub(super) email: Option<&'static str>,
}

impl User {
    /// Finds by username, e-mail address or `sub`.
    pub(super) fn find(pool: &'static SeededPool, name: &str) -> Option<Self> {
        let seeded = USERS.iter().map(|user| Self {
            pool: pool.id,
            username: user.username.to_owned(),
            password: user.password,
            email: Some(user.email),
        });
        let special = Special::of(name).map(|_| Self {
            pool: pool.id,
            username: name.to_owned(),
            password: SPECIAL_PASSWORD,
            email: None,
        });
        seeded
            .chain(special)
            .find(|user| user.username == name || user.email == Some(name) || user.sub() == name)
    }

    /// The same in every run, so that it can be copied into a script.
    pub(super) fn sub(&self) -> String {
        // FNV-1a, because the standard hasher may change from one compiler to the next.
        let seed = [self.pool, "/", &self.username]
            .iter()
            .flat_map(|part| part.bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        uuid_v4(fastrand::Rng::with_seed(seed).u128(..))
    }
}

/// Which of the three tokens of a sign-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenUse {
    Access,
    Id,
    Refresh,
}

impl fmt::Display for TokenUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Access => "access",
            Self::Id => "id",
            Self::Refresh => "refresh",
        })
    }
}

/// What all tokens of one sign-in have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) user: User,
    pub(super) client_id: String,
    /// Ties the tokens of a sign-in together; Cognito calls it `origin_jti`.
    pub(super) origin: String,
    /// When the user gave their password, in seconds since the epoch.
    pub(super) auth_time: u64,
    sign_outs: u64,
}

/// Why a token does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dead {
    Invalid,
    Expired,
    Revoked,
}

/// The only mutable state of the emulator.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Keyed at random, so that the tokens of an earlier run are invalid in this one.
    key: RandomState,
    accounts: Mutex<HashMap<User, Account>>,
}

#[derive(Debug, Default)]
struct Account {
    sign_outs: u64,
    throttled: bool,
}

impl Directory {
    pub(super) fn sign_in(&self, user: User, client_id: &str, now: u64) -> Session {
        let sign_outs = self.accounts().get(&user).map_or(0, |account| account.sign_outs);
        Session { user, client_id: client_id.to_owned(), origin: new_uuid(), auth_time: now, sign_outs }
    }

    /// Kills every token issued to the user so far.
    pub(super) fn sign_out(&self, user: &User) {
        self.accounts().entry(user.clone()).or_default().sign_outs += 1;
    }

    /// True on the first call and every second one thereafter.
    pub(super) fn throttle_in_turn(&self, user: &User) -> bool {
        let mut accounts = self.accounts();
        let account = accounts.entry(user.clone()).or_default();
        account.throttled = !account.throttled;
        account.throttled
    }

    /// A token in the form of Cognito's JWTs. Its signature is not RS256, whatever the header says: nobody
    /// but this directory can verify it.
    pub(super) fn issue(&self, session: &Session, kind: TokenUse, now: u64) -> String {
        let Session { user, client_id, origin, auth_time, sign_outs } = session;
        let region = user.pool.split_once('_').map_or("", |(region, _)| region);
        let mut claims = json!({
            "sub": user.sub(),
            "iss": format!("https://cognito-idp.{region}.amazonaws.com/{}", user.pool),
            "origin_jti": origin,
            "token_use": kind.to_string(),
            "auth_time": auth_time,
            "iat": now,
            "exp": now + ACCESS_LIFETIME,
            "jti": new_uuid(),
        });
        match kind {
            TokenUse::Access => {
                claims["client_id"] = json!(client_id);
                claims["username"] = json!(user.username);
                claims["event_id"] = json!(new_uuid());
                claims["scope"] = json!("aws.cognito.signin.user.admin");
            }
            TokenUse::Id => {
                claims["aud"] = json!(client_id);
                claims["cognito:username"] = json!(user.username);
                claims["event_id"] = json!(new_uuid());
                if let Some(email) = user.email {
                    claims["email"] = json!(email);
                    claims["email_verified"] = json!(true);
                }
            }
            // Opaque in Cognito; here it holds what is needed to renew the others.
            TokenUse::Refresh => {
                claims["client_id"] = json!(client_id);
                claims["username"] = json!(user.username);
                claims["exp"] = json!(auth_time + REFRESH_LIFETIME);
            }
        }
        let header = json!({ "kid": format!("{KEY_ID}{sign_outs}"), "alg": "RS256" });
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.signature(&signed);
        format!("{signed}.{signature}")
    }

    /// The session behind a token of that kind, if it still works.
    pub(super) fn verify(&self, token: &str, kind: TokenUse, now: u64) -> Result<Session, Dead> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Dead::Invalid)?;
        if signature != self.signature(signed) {
            return Err(Dead::Invalid);
        }
        let (session, expires) = read(signed, kind).ok_or(Dead::Invalid)?;
        if expires <= now {
            return Err(Dead::Expired);
        }
        let sign_outs = self.accounts().get(&session.user).map_or(0, |account| account.sign_outs);
        if session.sign_outs == sign_outs { Ok(session) } else { Err(Dead::Revoked) }
    }

    /// As long as an RS256 signature, and unpredictable enough for a fake.
    fn signature(&self, signed: &str) -> String {
        let bytes: Vec<u8> =
            (0..32_u8).flat_map(|block| self.key.hash_one((block, signed)).to_be_bytes()).collect();
        encode(bytes)
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<User, Account>> {
        // A count is whole at any moment, so a panic elsewhere has not broken it.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the authenticated part of a token says: the session and its expiry.
fn read(signed: &str, kind: TokenUse) -> Option<(Session, u64)> {
    let (header, claims) = signed.split_once('.')?;
    let header = decode(header)?;
    let claims = decode(claims)?;
    if claims["token_use"] != kind.to_string() {
        return None;
    }
    let issuer = claims["iss"].as_str()?;
    let pool = POOLS.iter().find(|pool| issuer.ends_with(pool.id))?;
    let session = Session {
        user: User::find(pool, claims["username"].as_str()?)?,
        client_id: claims["client_id"].as_str()?.to_owned(),
        origin: claims["origin_jti"].as_str()?.to_owned(),
        auth_time: claims["auth_time"].as_u64()?,
        sign_outs: header["kid"].as_str()?.strip_prefix(KEY_ID)?.parse().ok()?,
    };
    Some((session, claims["exp"].as_u64()?))
}

/// Base64 in the alphabet for URLs and without padding, as JWTs have it.
fn encode(bytes: impl AsRef<[u8]>) -> String {
    let padded = base64::encode(bytes);
    padded.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

fn decode(part: &str) -> Option<Value> {
    let mut padded = part.replace('-', "+").replace('_', "/");
    padded.extend(std::iter::repeat_n('=', (4 - padded.len() % 4) % 4));
    serde_json::from_slice(&base64::decode(padded).ok()?).ok()
}

pub(super) fn new_uuid() -> String {
    uuid_v4(fastrand::u128(..))
}

fn uuid_v4(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0b11 << 62) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn ada() -> User {
        User::find(&POOLS[0], "ada").unwrap()
    }

    #[test]
    fn a_user_is_found_by_name_address_and_sub() {
        assert_eq!(User::find(&POOLS[0], "ada@example.com"), Some(ada()));
        assert_eq!(User::find(&POOLS[0], &ada().sub()), Some(ada()));
        assert_eq!(User::find(&POOLS[1], &ada().sub()), None);
        assert_eq!(User::find(&POOLS[0], "Ada"), None);
        assert_eq!(User::find(&POOLS[0], "user-not-found"), None);
    }

    #[test]
    fn a_token_gives_its_session_back() {
        let directory = Directory::default();
        let user = User::find(&POOLS[1], "zoë🦀").unwrap();
        let session = directory.sign_in(user, POOLS[1].client_id, NOW);
        for kind in [TokenUse::Access, TokenUse::Refresh] {
            let token = directory.issue(&session, kind, NOW);
            assert_eq!(directory.verify(&token, kind, NOW), Ok(session.clone()));
        }
    }

    #[test]
    fn a_token_of_another_kind_another_run_or_another_hand_is_invalid() {
        let directory = Directory::default();
        let session = directory.sign_in(ada(), POOLS[0].client_id, NOW);
        let token = directory.issue(&session, TokenUse::Access, NOW);
        let id = directory.issue(&session, TokenUse::Id, NOW);

        assert_eq!(directory.verify(&token, TokenUse::Refresh, NOW), Err(Dead::Invalid));
        assert_eq!(directory.verify(&id, TokenUse::Access, NOW), Err(Dead::Invalid));
        assert_eq!(Directory::default().verify(&token, TokenUse::Access, NOW), Err(Dead::Invalid));
        for text in ["", ".", "..", "a.b.c", &token[1..], &token[..token.len() - 1], "ü.ü.ü"] {
            assert_eq!(directory.verify(text, TokenUse::Access, NOW), Err(Dead::Invalid), "{text}");
        }
    }

    #[test]
    fn tokens_expire() {
        let directory = Directory::default();
        let session = directory.sign_in(ada(), POOLS[0].client_id, NOW);
        let access = directory.issue(&session, TokenUse::Access, NOW);
        let refresh = directory.issue(&session, TokenUse::Refresh, NOW);

        let later = NOW + ACCESS_LIFETIME;
        assert_eq!(directory.verify(&access, TokenUse::Access, later), Err(Dead::Expired));
        assert!(directory.verify(&refresh, TokenUse::Refresh, later).is_ok());
        let later = NOW + REFRESH_LIFETIME;
        assert_eq!(directory.verify(&refresh, TokenUse::Refresh, later), Err(Dead::Expired));
    }

    #[test]
    fn a_sign_out_revokes_the_past_of_one_user_in_one_pool() {
        let directory = Directory::default();
        let elsewhere = User::find(&POOLS[1], "ada").unwrap();
        let old = directory.sign_in(ada(), POOLS[0].client_id, NOW);
        let other = directory.sign_in(elsewhere, POOLS[1].client_id, NOW);
        let old = directory.issue(&old, TokenUse::Access, NOW);
        let other = directory.issue(&other, TokenUse::Access, NOW);

        directory.sign_out(&ada());
        let new = directory.sign_in(ada(), POOLS[0].client_id, NOW);
        let new = directory.issue(&new, TokenUse::Access, NOW);

        assert_eq!(directory.verify(&old, TokenUse::Access, NOW), Err(Dead::Revoked));
        assert!(directory.verify(&other, TokenUse::Access, NOW).is_ok());
        assert!(directory.verify(&new, TokenUse::Access, NOW).is_ok());
    }

    #[test]
    fn uuids_say_that_they_are_random() {
        for _ in 0..100 {
            let uuid = new_uuid();
            let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12]);
            assert_eq!(uuid.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
        }
    }
}
