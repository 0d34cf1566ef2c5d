//! Reading a request's body: JSON, the types of its members, and the constraints of Cognito's API model.

use serde_json::{Map, Value};

use super::api::Fault;

/// A JSON object whose members are read by type.
pub(super) struct Input(Map<String, Value>);

impl Input {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Fault> {
        // Cognito says no more than this about JSON that it cannot read.
        let unreadable = |_| Fault { code: "SerializationException", message: None };
        serde_json::from_slice(body).map(Self).map_err(unreadable)
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Fault> {
        let kind = match self.0.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => return Ok(Some(text)),
            Some(Value::Bool(true)) => "TRUE_VALUE",
            Some(Value::Bool(false)) => "FALSE_VALUE",
            Some(Value::Number(_)) => "NUMBER_VALUE",
            Some(Value::Array(_)) => {
                return Err(unexpected("Start of list found where not expected."));
            }
            Some(Value::Object(_)) => {
                return Err(unexpected("Start of structure or map found where not expected."));
            }
        };
        Err(unexpected(&format!("{kind} can not be converted to a String")))
    }

    pub(super) fn map(&self, name: &str) -> Result<Self, Fault> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(Self(Map::new())),
            Some(Value::Object(map)) => Ok(Self(map.clone())),
            Some(_) => Err(unexpected("Unexpected field type")),
        }
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, Fault> {
        self.text(name)?.ok_or_else(|| {
            Fault::new("InvalidParameterException", format!("Missing required parameter {name}"))
        })
    }
}

fn unexpected(message: &str) -> Fault {
    Fault::new("SerializationException", message)
}

/// A required member of an input, with its constraints as Cognito's API model states them.
pub(super) struct Member {
    name: &'static str,
    /// Messages do not repeat the value of such a member.
    sensitive: bool,
    /// In characters.
    max_length: Option<usize>,
    rule: &'static str,
    obeys_rule: fn(&str) -> bool,
}

pub(super) const USER_POOL_ID: Member = Member {
    name: "userPoolId",
    sensitive: false,
    max_length: Some(55),
    rule: r"Member must satisfy regular expression pattern: [\w-]+_[0-9a-zA-Z]+",
    obeys_rule: |id| {
        id.rsplit_once('_').is_some_and(|(region, unique)| {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            !region.is_empty()
                && region.bytes().all(word)
                && !unique.is_empty()
                && unique.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
    },
};

pub(super) const USERNAME: Member = Member {
    name: "username",
    sensitive: true,
    max_length: Some(128),
    rule: r"Member must satisfy regular expression pattern: [\p{L}\p{M}\p{S}\p{N}\p{P}]+",
    obeys_rule: |name| {
        !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control() || is_format(c))
    },
};

pub(super) const CLIENT_ID: Member = Member {
    name: "clientId",
    sensitive: true,
    max_length: Some(128),
    rule: r"Member must satisfy regular expression pattern: [\w+]+",
    obeys_rule: |id| {
        !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+'))
    },
};

pub(super) const AUTH_FLOW: Member = Member {
    name: "authFlow",
    sensitive: false,
    max_length: None,
    rule: "Member must satisfy enum value set: [USER_SRP_AUTH, REFRESH_TOKEN_AUTH, REFRESH_TOKEN, CUSTOM_AUTH, \
           ADMIN_NO_SRP_AUTH, USER_PASSWORD_AUTH, ADMIN_USER_PASSWORD_AUTH, USER_AUTH]",
    obeys_rule: |flow| {
        matches!(
            flow,
            "USER_SRP_AUTH"
                | "REFRESH_TOKEN_AUTH"
                | "REFRESH_TOKEN"
                | "CUSTOM_AUTH"
                | "ADMIN_NO_SRP_AUTH"
                | "USER_PASSWORD_AUTH"
                | "ADMIN_USER_PASSWORD_AUTH"
                | "USER_AUTH"
        )
    },
};

pub(super) const ACCESS_TOKEN: Member = Member {
    name: "accessToken",
    sensitive: true,
    max_length: None,
    rule: "Member must satisfy regular expression pattern: [A-Za-z0-9-_=.]+",
    obeys_rule: |token| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte);
        !token.is_empty() && token.bytes().all(allowed)
    },
};

/// The values, once every one of them is present and obeys its constraints; else all violations at once.
pub(super) fn valid<const N: usize>(members: [(Member, Option<&str>); N]) -> Result<[&str; N], Fault> {
    let violations: Vec<_> = members.iter().flat_map(|(member, value)| member.violations(*value)).collect();
    match violations.len() {
        0 => Ok(members.map(|(_, value)| value.unwrap_or_default())),
        count => Err(Fault::new(
            "InvalidParameterException",
            format!(
                "{count} validation error{} detected: {}",
                if count == 1 { "" } else { "s" },
                violations.join("; ")
            ),
        )),
    }
}

impl Member {
    fn violations(&self, value: Option<&str>) -> Vec<String> {
        let mut broken = Vec::new();
        match value {
            None => broken.push("Member must not be null".to_owned()),
            Some(value) => {
                if !(self.obeys_rule)(value) {
                    broken.push(self.rule.to_owned());
                }
                if let Some(max) = self.max_length {
                    if value.is_empty() {
                        broken.push("Member must have length greater than or equal to 1".to_owned());
                    }
                    if value.chars().count() > max {
                        broken.push(format!("Member must have length less than or equal to {max}"));
                    }
                }
            }
        }
        let shown = match value {
            _ if self.sensitive => String::new(),
            Some(value) => format!("'{value}' "),
            None => "null ".to_owned(),
        };
        let name = self.name;
        let sentence = |broken| format!("Value {shown}at '{name}' failed to satisfy constraint: {broken}");
        broken.into_iter().map(sentence).collect()
    }
}

/// Unicode's invisible characters (categories Cf and Co), which std cannot name. One of them, the zero-width
/// joiner, is why Cognito refuses a family emoji in a username.
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' | '\u{f0000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_ids_and_usernames_are_held_to_their_patterns() {
        let pool = |id: &str| USER_POOL_ID.violations(Some(id)).is_empty();
        assert!(
            pool("us-east-1_Ab9") && pool("a_b_c") && pool(&format!("{}_{}", "r".repeat(50), "u".repeat(4)))
        );
        for id in [
            "_x",
            "us-east-1_",
            "us-east-1",
            "us east_1",
            "us-east-1_a-b",
            "ü_a",
            &format!("r_{}", "u".repeat(54)),
        ] {
            assert!(!pool(id), "{id}");
        }
        let username = |name: &str| USERNAME.violations(Some(name)).is_empty();
        assert!(username("zoë🦀") && username("a+b@c.d") && username(&"🦀".repeat(128)));
        for name in ["a b", "a\u{a0}b", "a\nb", "\u{200d}", "👩\u{200d}👧", "a\u{e000}"] {
            assert!(!username(name), "{name:?}");
        }
    }
}
