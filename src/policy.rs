//! Who may sign out whom.
//!
//! A connection and the headers of a call show who is calling: that is [`Presented`]. [`Access::identify`] makes a
//! [`Caller`] of it, or does not; [`Access::allows`] tells which pools that caller may touch. Both are asked for every
//! call and every item of a stream, so a change of the policy holds from the next one on, on old connections too.

mod file;

use std::sync::Arc;

use aws_lc_rs::{constant_time, digest};
use tokio::sync::watch;

pub use self::file::load;
use crate::{
    pattern::Pattern,
    sign_out::{Cause, SignOutError, UserPoolId},
};

/// What a connection shows of who is at its other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process on this machine; the kernel vouches for its user.
    Unix {
        /// Whom the process ran as when it connected.
        uid: u32,
    },
    /// TCP under TLS, with the names in the client's certificate if it showed one. One that does not verify never
    /// comes this far.
    Tls(Option<CertificateNames>),
    /// TCP in plain text.
    Plain {
        /// Whether the listener can be reached from this machine alone.
        loopback: bool,
    },
}

/// The names that a verified client certificate was issued for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// The SPIFFE ID: there if the certificate has exactly one URI and that is one.
    pub spiffe: Option<String>,
    /// DNS names in lower case, without those that have a wildcard.
    pub dns: Vec<String>,
}

impl Peer {
    /// What the other end is called where no policy gives it a name.
    fn name(&self) -> Option<Arc<str>> {
        match self {
            Self::Unix { uid } => Some(format!("uid:{uid}").into()),
            Self::Tls(Some(names)) => {
                names.spiffe.as_deref().or(names.dns.first().map(String::as_str)).map(Arc::from)
            }
            Self::Tls(None) | Self::Plain { .. } => None,
        }
    }
}

/// All that a call shows of who makes it.
#[derive(Debug, Clone)]
pub struct Presented {
    peer: Arc<Peer>,
    token: Token,
}

/// The bearer token of a call. Only its digest is kept.
#[derive(Debug, Clone)]
enum Token {
    None,
    /// It came where others may have read it, so it proves nothing, and was not even looked at.
    InTheClear,
    Digest(TokenDigest),
}

impl Presented {
    /// `authorization` is the header of that name; one that is not `Bearer TOKEN` is as good as none.
    pub fn new(peer: Arc<Peer>, authorization: Option<&[u8]>) -> Self {
        let token = match (authorization.and_then(bearer), &*peer) {
            (None, _) => Token::None,
            (Some(_), Peer::Plain { loopback: false }) => Token::InTheClear,
            (Some(token), Peer::Plain { loopback: true } | Peer::Unix { .. } | Peer::Tls(_)) => {
                Token::Digest(TokenDigest::of(token))
            }
        };
        Self { peer, token }
    }
}

/// The token of `Bearer TOKEN`; the word is the same in any case.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// The SHA-256 of a bearer token.
#[derive(Debug, Clone, Copy)]
struct TokenDigest([u8; 32]);

impl TokenDigest {
    fn of(token: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        Self(digest)
    }

    /// Takes the same time whatever differs.
    fn is(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

/// The callers that there are. The first that matches is the one who calls.
#[derive(Debug)]
pub struct Policy {
    callers: Vec<Entry>,
    warnings: Vec<String>,
}

/// A caller and how it is known: by any of these.
#[derive(Debug)]
struct Entry {
    caller: Caller,
    spiffe: Vec<Pattern>,
    dns: Vec<Pattern>,
    tokens: Vec<TokenDigest>,
    uids: Vec<u32>,
}

impl Policy {
    /// Who calls; `None` is nobody that the policy knows.
    fn identify(&self, presented: &Presented) -> Option<Caller> {
        self.callers.iter().find(|entry| entry.is(presented)).map(|entry| entry.caller.clone())
    }

    /// Whether some caller can be known by a token.
    pub fn has_tokens(&self) -> bool {
        self.callers.iter().any(|entry| !entry.tokens.is_empty())
    }

    /// Whether some caller can be known by a client certificate.
    pub fn has_certificates(&self) -> bool {
        self.callers.iter().any(|entry| !entry.spiffe.is_empty() || !entry.dns.is_empty())
    }

    /// Whether some caller can be known by its uid.
    pub fn has_uids(&self) -> bool {
        self.callers.iter().any(|entry| !entry.uids.is_empty())
    }

    /// What is allowed, but should not be.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Entry {
    fn is(&self, presented: &Presented) -> bool {
        let by_connection = match &*presented.peer {
            Peer::Unix { uid } => self.uids.contains(uid),
            Peer::Tls(Some(names)) => {
                names.spiffe.iter().any(|id| self.spiffe.iter().any(|pattern| pattern.matches(id)))
                    || names.dns.iter().any(|name| self.dns.iter().any(|pattern| pattern.matches(name)))
            }
            Peer::Tls(None) | Peer::Plain { .. } => false,
        };
        let by_token = match &presented.token {
            // All of them, always: the time tells nothing of which one it was.
            Token::Digest(token) => self.tokens.iter().fold(false, |found, known| found | known.is(token)),
            Token::None | Token::InTheClear => false,
        };
        by_connection || by_token
    }
}

/// Who is calling, and which pools that caller may touch.
#[derive(Debug, Clone)]
pub struct Caller {
    name: Option<Arc<str>>,
    pools: Pools,
}

#[derive(Debug, Clone)]
enum Pools {
    All,
    These(Arc<[Pattern]>),
}

impl Caller {
    /// Its name, for the log and for audits: the policy's name for it; without a policy the verified name of the other
    /// end, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// What decides on every call: the policy if there is one, what the flags demand, and the pools that exist for this
/// sidecar.
#[derive(Debug, Clone)]
pub struct Access {
    /// As it is at the moment.
    pub policy: Option<watch::Receiver<Arc<Policy>>>,
    /// Whether over TCP a client certificate is demanded where no policy says who may call.
    pub certificates: bool,
    /// The only pools that anybody may touch; empty for all.
    pub allow_pools: Vec<Pattern>,
}

impl Access {
    /// Who is calling.
    pub fn identify(&self, presented: &Presented) -> Result<Caller, Unidentified> {
        match &self.policy {
            Some(policy) => {
                let known = policy.borrow().identify(presented);
                known.ok_or_else(|| Unidentified::by(presented))
            }
            None if self.certificates => match &*presented.peer {
                Peer::Unix { .. } | Peer::Tls(Some(_)) => Ok(Self::anybody(&presented.peer)),
                Peer::Tls(None) | Peer::Plain { .. } => Err(Unidentified::NoCertificate),
            },
            None => Ok(Self::anybody(&presented.peer)),
        }
    }

    fn anybody(peer: &Peer) -> Caller {
        Caller { name: peer.name(), pools: Pools::All }
    }

    /// Whether that caller may sign users out of that pool.
    pub fn allows(&self, caller: &Caller, pool: &UserPoolId) -> bool {
        let among = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(pool.as_str()));
        let exists = self.allow_pools.is_empty() || among(&self.allow_pools);
        exists
            && match &caller.pools {
                Pools::All => true,
                Pools::These(patterns) => among(patterns),
            }
    }
}

/// Why it is not known who is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unidentified {
    /// Neither certificate nor token.
    Nothing,
    /// No certificate, where nothing else would do.
    NoCertificate,
    /// A token that was not looked at.
    TokenInTheClear,
    /// A token that the policy does not have.
    UnknownToken,
    /// Names that the policy does not have.
    UnknownCertificate,
    /// A uid that the policy does not have.
    UnknownUid,
}

impl Unidentified {
    fn by(presented: &Presented) -> Self {
        match (&presented.token, &*presented.peer) {
            (Token::InTheClear, _) => Self::TokenInTheClear,
            (Token::Digest(_), _) => Self::UnknownToken,
            (Token::None, Peer::Tls(Some(_))) => Self::UnknownCertificate,
            (Token::None, Peer::Unix { .. }) => Self::UnknownUid,
            (Token::None, Peer::Tls(None) | Peer::Plain { .. }) => Self::Nothing,
        }
    }

    /// In words that help a caller who should be known, and tell others nothing.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "the call came with neither a client certificate nor a token",
            Self::NoCertificate => "the call came without a client certificate",
            Self::TokenInTheClear => {
                "a token is accepted only over TLS, on a unix socket or on loopback; others may have read this one"
            }
            Self::UnknownToken => "the policy does not know the token of the call",
            Self::UnknownCertificate => "the policy does not know the names in the client certificate",
            Self::UnknownUid => {
                "the policy does not know the user that the calling process runs as, and there is no token"
            }
        }
    }
}

impl From<Unidentified> for SignOutError {
    fn from(why: Unidentified) -> Self {
        Self::new(Cause::CallerUnauthenticated(why.as_str()))
    }
}

#[cfg(test)]
mod tests;
