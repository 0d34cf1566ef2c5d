//! Whom to sign out: parsed once, so that no later code checks again.

use std::{fmt, sync::Arc};

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory as _};

/// A user in a user pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// The pool.
    pub pool: UserPoolId,
    /// The user name, an alias, or the `sub`.
    pub name: Username,
}

impl User {
    /// Parses both fields of a request; every field that is wrong is told, not only the first.
    pub fn parse(user_pool_id: &str, username: &str) -> Result<Self, Vec<FieldViolation>> {
        match (UserPoolId::parse(user_pool_id), Username::parse(username)) {
            (Ok(pool), Ok(name)) => Ok(Self { pool, name }),
            (pool, name) => Err([pool.err(), name.err()].into_iter().flatten().collect()),
        }
    }
}

/// A field of a request that is missing or malformed. Never repeats the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's name in the protobuf message.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub description: String,
}

/// The id of a user pool: 1-55 characters, `[A-Za-z0-9_-]+_[0-9a-zA-Z]+`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserPoolId(Arc<str>);

impl UserPoolId {
    const FIELD: &'static str = "user_pool_id";

    /// The id in `text`, or what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, FieldViolation> {
        let wrong = |description: &str| {
            Err(FieldViolation { field: Self::FIELD, description: description.to_owned() })
        };
        if text.is_empty() {
            return wrong("is missing; it is the id of a user pool, such as eu-central-1_EXAMPLE02");
        }
        if text.len() > 55 {
            return wrong("is too long: a user pool id has at most 55 characters");
        }
        let well_formed = text.rsplit_once('_').is_some_and(|(prefix, suffix)| {
            !prefix.is_empty()
                && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
                && !suffix.is_empty()
                && suffix.bytes().all(|b| b.is_ascii_alphanumeric())
        });
        if !well_formed {
            return wrong(
                "is not a user pool id: it is the region, an underscore, and letters and digits, such as \
                 eu-central-1_EXAMPLE02",
            );
        }
        Ok(Self(text.into()))
    }

    /// A pool in whose prefix there is no region, and for which none was configured.
    pub fn without_region() -> FieldViolation {
        FieldViolation {
            field: Self::FIELD,
            description:
                "does not begin with a region such as eu-central-1, and the sidecar was told none for it by \
                          --pool-region"
                    .to_owned(),
        }
    }

    /// The region that the id names, if its prefix looks like one.
    pub fn region(&self) -> Option<Region> {
        let (prefix, _) = self.0.rsplit_once('_')?;
        prefix.parse().ok()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserPoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user name, exactly as the caller gave it: 1-128 letters, marks, symbols, numbers and punctuation characters.
///
/// Personal data: it is shown by neither `Debug` nor `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Username(Arc<str>);

impl Username {
    const FIELD: &'static str = "username";

    /// The name in `text`, or what is wrong with it. Nothing is trimmed or folded: a pool may be case-sensitive, and
    /// another spelling may be another user.
    pub fn parse(text: &str) -> Result<Self, FieldViolation> {
        use GeneralCategoryGroup::{Letter, Mark, Number, Punctuation, Symbol};

        let wrong = |description: String| Err(FieldViolation { field: Self::FIELD, description });
        if text.is_empty() {
            return wrong("is missing; it is a user name, an alias of the user, or the sub".to_owned());
        }
        for (index, char) in text.chars().enumerate() {
            if index == 128 {
                return wrong("is too long: a user name has at most 128 characters".to_owned());
            }
            if !matches!(char.general_category_group(), Letter | Mark | Symbol | Number | Punctuation) {
                return wrong(format!(
                    "has a character that no user name has, at position {}: only letters, marks, symbols, numbers \
                     and punctuation are allowed, so neither spaces nor control characters",
                    index + 1
                ));
            }
        }
        Ok(Self(text.into()))
    }

    /// The name itself, for Cognito alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Username(_)")
    }
}

/// An AWS region. It becomes part of a host name, hence the strict alphabet: `[a-z]{2,}(-[a-z]+)+-[0-9]+`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Region(Arc<str>);

impl Region {
    /// The region's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Region {
    type Err = NotARegion;

    fn from_str(text: &str) -> Result<Self, NotARegion> {
        let lower = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
        let parts: Vec<&str> = text.split('-').collect();
        match parts.as_slice() {
            [first, middle @ .., last]
                if first.len() >= 2
                    && lower(first)
                    && !middle.is_empty()
                    && middle.iter().all(lower)
                    && !last.is_empty()
                    && last.bytes().all(|b| b.is_ascii_digit())
                    // A label of a host name has at most 63 characters.
                    && text.len() <= 63 =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(NotARegion(text.to_owned())),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that does not look like a region.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not look like an AWS region, such as eu-central-1")]
pub struct NotARegion(String);
