//! Names matched exactly, or by a prefix that ends in one `*`.

use std::{fmt, str::FromStr};

/// Either an exact name, or a prefix followed by one `*`; `*` alone matches every name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    wildcard: bool,
}

impl Pattern {
    /// Whether `name` is the exact name, or begins with the prefix.
    pub fn matches(&self, name: &str) -> bool {
        if self.wildcard { name.starts_with(&self.text) } else { name == self.text }
    }

    /// How closely the pattern tells: of two that match, the greater is meant. An exact one beats any prefix.
    pub fn precision(&self) -> impl Ord + use<> {
        (!self.wildcard, self.text.len())
    }
}

/// Why a text is not a pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing to match.
    #[error("a pattern may not be empty; write * to match everything")]
    Empty,
    /// A `*` that is not the last character.
    #[error("a pattern is exact or ends in one *; there is a * elsewhere in {0:?}")]
    InnerWildcard(String),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (prefix, wildcard) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if prefix.contains('*') {
            return Err(PatternError::InnerWildcard(text.to_owned()));
        }
        Ok(Self { text: prefix.to_owned(), wildcard })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.wildcard { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_pattern_matches_itself_alone() {
        let pattern: Pattern = "us-east-1_A".parse().unwrap();
        assert!(pattern.matches("us-east-1_A"));
        assert!(!pattern.matches("us-east-1_Ab"));
        assert!(!pattern.matches("us-east-1_a"));
    }

    #[test]
    fn a_wildcard_matches_the_prefix_and_what_follows() {
        let pattern: Pattern = "us-east-1_*".parse().unwrap();
        assert!(pattern.matches("us-east-1_A"));
        assert!(pattern.matches("us-east-1_"));
        assert!(!pattern.matches("us-east-2_A"));
        assert!("*".parse::<Pattern>().unwrap().matches("anything"));
    }

    #[test]
    fn an_exact_pattern_is_more_precise_than_any_prefix_and_a_longer_prefix_than_a_shorter() {
        let precision = |text: &str| text.parse::<Pattern>().unwrap().precision();
        assert!(precision("a") > precision("abc*"));
        assert!(precision("abc*") > precision("ab*"));
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Empty));
        assert_eq!("a*b".parse::<Pattern>(), Err(PatternError::InnerWildcard("a*b".into())));
        assert_eq!("a**".parse::<Pattern>(), Err(PatternError::InnerWildcard("a**".into())));
    }
}
