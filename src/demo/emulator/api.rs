//! The three operations, from a request's headers and body to what is to be answered. No I/O here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::{Value, json};

use super::{
    directory::{ACCESS_LIFETIME, Dead, Directory, Session, TokenUse, User},
    input::{ACCESS_TOKEN, AUTH_FLOW, CLIENT_ID, Input, USER_POOL_ID, USERNAME, valid},
    seed::{POOLS, SeededPool, Special},
};

/// The content type of requests and answers.
pub(super) const AMZ_JSON: &str = "application/x-amz-json-1.1";
const TARGET_PREFIX: &str = "AWSCognitoIdentityProviderService.";

/// What the peer gets to see.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Answer(Reply),
    AnswerAfter(Duration, Reply),
    /// The headers of the reply, and less body than they promise.
    AnswerInPart(Reply),
    NoAnswer,
    HangUp,
}

#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    Success(Value),
    Fault(Fault),
    /// What a load balancer says when nobody is behind it.
    Unavailable,
}

/// A failure as the protocol has it: a code, and mostly a message.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) code: &'static str,
    pub(super) message: Option<String>,
}

impl Fault {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self::new("RequestEntityTooLargeException", format!("This emulator takes at most {limit} bytes"))
    }

    pub(super) fn status(&self) -> StatusCode {
        match self.code {
            "InternalErrorException" => StatusCode::INTERNAL_SERVER_ERROR,
            "ForbiddenException" => StatusCode::FORBIDDEN,
            "RequestEntityTooLargeException" => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn body(&self) -> Value {
        match &self.message {
            Some(message) => json!({ "__type": self.code, "message": message }),
            None => json!({ "__type": self.code }),
        }
    }
}

/// The operation a request names, without the service's prefix; empty when it names none.
pub(super) fn operation(headers: &HeaderMap) -> &str {
    header(headers, "x-amz-target").and_then(|target| target.strip_prefix(TARGET_PREFIX)).unwrap_or_default()
}

pub(super) fn handle(directory: &Directory, headers: &HeaderMap, body: &[u8]) -> Outcome {
    let done = match operation(headers) {
        // Not lenient here: it is what keeps a web page, which cannot send this type unasked, from calling us.
        _ if !is_amz_json(headers) => {
            Err(Fault::new("UnknownOperationException", format!("The Content-Type must be {AMZ_JSON}")))
        }
        "AdminUserGlobalSignOut" => admin_user_global_sign_out(directory, headers, body),
        "InitiateAuth" => initiate_auth(directory, body).map(success),
        "GetUser" => get_user(directory, body).map(success),
        _ => Err(Fault::new(
            "UnknownOperationException",
            "This emulator knows AdminUserGlobalSignOut, InitiateAuth and GetUser",
        )),
    };
    done.unwrap_or_else(|fault| Outcome::Answer(Reply::Fault(fault)))
}

fn success(body: Value) -> Outcome {
    Outcome::Answer(Reply::Success(body))
}

fn admin_user_global_sign_out(
    directory: &Directory,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Outcome, Fault> {
    let region = signed_region(headers)?;
    let input = Input::parse(body)?;
    let [pool_id, username] =
        valid([(USER_POOL_ID, input.text("UserPoolId")?), (USERNAME, input.text("Username")?)])?;
    let no_pool = || Fault::new("ResourceNotFoundException", format!("User pool {pool_id} does not exist."));
    let pool = POOLS.iter().find(|pool| pool.id == pool_id && pool.region == region).ok_or_else(no_pool)?;
    let user = User::find(pool, username).ok_or_else(user_not_found)?;

    let done = || Reply::Success(json!({}));
    let outcome = match Special::of(username) {
        Some(Special::Fault(code, message)) => return Err(Fault::new(code, message)),
        Some(Special::ResourceNotFound) => return Err(no_pool()),
        Some(Special::AccessDenied) => return Err(access_denied(pool)),
        Some(Special::ThrottledOnce) if directory.throttle_in_turn(&user) => {
            return Err(Fault::new("TooManyRequestsException", "Rate exceeded"));
        }
        Some(Special::Unavailable) => return Ok(Outcome::Answer(Reply::Unavailable)),
        None | Some(Special::ThrottledOnce) => Outcome::Answer(done()),
        Some(Special::Slow(delay)) => Outcome::AnswerAfter(delay, done()),
        Some(Special::Never) => Outcome::NoAnswer,
        Some(Special::Drop) => Outcome::HangUp,
        Some(Special::Half) => Outcome::AnswerInPart(done()),
    };
    // Before any delay: whoever gives up waiting must not conclude that nothing happened.
    directory.sign_out(&user);
    Ok(outcome)
}

fn initiate_auth(directory: &Directory, body: &[u8]) -> Result<Value, Fault> {
    let input = Input::parse(body)?;
    let [flow, client_id] =
        valid([(AUTH_FLOW, input.text("AuthFlow")?), (CLIENT_ID, input.text("ClientId")?)])?;
    let parameters = input.map("AuthParameters")?;
    let pool = POOLS.iter().find(|pool| pool.client_id == client_id).ok_or_else(|| {
        Fault::new("ResourceNotFoundException", format!("User pool client {client_id} does not exist."))
    })?;
    let now = now();
    let session = match flow {
        "USER_PASSWORD_AUTH" => {
            let user = User::find(pool, parameters.required("USERNAME")?);
            let password = parameters.required("PASSWORD")?;
            let user = user.ok_or_else(user_not_found)?;
            if user.password != password {
                return Err(not_authorized("Incorrect username or password."));
            }
            directory.sign_in(user, client_id, now)
        }
        "REFRESH_TOKEN_AUTH" | "REFRESH_TOKEN" => {
            let token = parameters.required("REFRESH_TOKEN")?;
            let session = verify(directory, token, TokenUse::Refresh, now)?;
            if session.client_id != client_id {
                return Err(not_authorized("Invalid Refresh Token"));
            }
            session
        }
        _ => {
            return Err(Fault::new(
                "InvalidParameterException",
                format!("{flow} flow not enabled for this client"),
            ));
        }
    };
    let mut result = json!({
        "AccessToken": directory.issue(&session, TokenUse::Access, now),
        "IdToken": directory.issue(&session, TokenUse::Id, now),
        "ExpiresIn": ACCESS_LIFETIME,
        "TokenType": "Bearer",
    });
    // A renewal keeps the refresh token that it used, and does not repeat it.
    if flow == "USER_PASSWORD_AUTH" {
        result["RefreshToken"] = json!(directory.issue(&session, TokenUse::Refresh, now));
    }
    Ok(json!({ "AuthenticationResult": result, "ChallengeParameters": {} }))
}

fn get_user(directory: &Directory, body: &[u8]) -> Result<Value, Fault> {
    let input = Input::parse(body)?;
    let [token] = valid([(ACCESS_TOKEN, input.text("AccessToken")?)])?;
    let Session { user, .. } = verify(directory, token, TokenUse::Access, now())?;
    let mut attributes = vec![json!({ "Name": "sub", "Value": user.sub() })];
    if let Some(email) = user.email {
        attributes.push(json!({ "Name": "email", "Value": email }));
        attributes.push(json!({ "Name": "email_verified", "Value": "true" }));
    }
    Ok(json!({ "Username": user.username, "UserAttributes": attributes }))
}

fn verify(directory: &Directory, token: &str, kind: TokenUse, now: u64) -> Result<Session, Fault> {
    let name = match kind {
        TokenUse::Access => "Access Token",
        TokenUse::Id => "Id Token",
        TokenUse::Refresh => "Refresh Token",
    };
    directory.verify(token, kind, now).map_err(|dead| match dead {
        Dead::Invalid => not_authorized(&format!("Invalid {name}")),
        Dead::Expired => not_authorized(&format!("{name} has expired")),
        Dead::Revoked => not_authorized(&format!("{name} has been revoked")),
    })
}

fn not_authorized(message: &str) -> Fault {
    Fault::new("NotAuthorizedException", message)
}

fn user_not_found() -> Fault {
    Fault::new("UserNotFoundException", "User does not exist.")
}

fn access_denied(pool: &SeededPool) -> Fault {
    const ACTION: &str = "cognito-idp:AdminUserGlobalSignOut";
    let SeededPool { id, region, .. } = pool;
    Fault::new(
        "AccessDeniedException",
        format!(
            "User: arn:aws:sts::123456789012:assumed-role/example-role/session is not authorized to perform: \
             {ACTION} on resource: arn:aws:cognito-idp:{region}:123456789012:userpool/{id} because no \
             identity-based policy allows the {ACTION} action"
        ),
    )
}

/// The region a request is signed for. In AWS it decides which Cognito is asked; here, which pools are seen.
/// The signature itself is not verified, and any credentials are good enough.
fn signed_region(headers: &HeaderMap) -> Result<&str, Fault> {
    let malformed = |message: &str| Fault::new("IncompleteSignatureException", message);
    let wrong = |message: &str| Fault::new("InvalidSignatureException", message);

    let authorization = header(headers, AUTHORIZATION.as_str())
        .ok_or_else(|| Fault::new("MissingAuthenticationTokenException", "Missing Authentication Token"))?;
    let parameters = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or_else(|| malformed("Authorization header requires the algorithm 'AWS4-HMAC-SHA256'."))?;
    let parameter = |name: &str| {
        parameters
            .split(',')
            .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
            .filter(|value| !value.is_empty())
            .ok_or_else(|| malformed(&format!("Authorization header requires '{name}' parameter.")))
    };
    let credential = parameter("Credential")?;
    parameter("SignedHeaders")?;
    parameter("Signature")?;

    let scope: Vec<_> = credential.split('/').collect();
    let [_key, date, region, service, terminator] = scope[..] else {
        return Err(malformed(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.",
        ));
    };
    if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed("Date in Credential scope must be in the form YYYYMMDD."));
    }
    if service != "cognito-idp" {
        return Err(wrong("Credential should be scoped to correct service: 'cognito-idp'."));
    }
    if terminator != "aws4_request" {
        return Err(wrong("Credential should be scoped with a valid terminator: 'aws4_request'."));
    }
    Ok(region)
}

fn is_amz_json(headers: &HeaderMap) -> bool {
    header(headers, CONTENT_TYPE.as_str())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(AMZ_JSON))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Seconds since the epoch, as tokens count them.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(operation: &str, authorization: Option<&str>, body: &str) -> Outcome {
        call_at(&Directory::default(), operation, authorization, body)
    }

    fn call_at(directory: &Directory, operation: &str, authorization: Option<&str>, body: &str) -> Outcome {
        let target = format!("{TARGET_PREFIX}{operation}");
        let pairs = [
            ("content-type", Some(AMZ_JSON)),
            ("x-amz-target", Some(&target)),
            ("authorization", authorization),
        ];
        let headers = pairs
            .iter()
            .filter_map(|(name, value)| Some((name.parse().ok()?, (*value)?.parse().ok()?)))
            .collect();
        handle(directory, &headers, body.as_bytes())
    }

    fn signed(scope: &str) -> String {
        format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature=00ff")
    }

    fn sign_out(region: &str, pool: &str, username: &str) -> Outcome {
        let authorization = signed(&format!("AKID/20260101/{region}/cognito-idp/aws4_request"));
        let body = json!({ "UserPoolId": pool, "Username": username }).to_string();
        call("AdminUserGlobalSignOut", Some(&authorization), &body)
    }

    fn fault(code: &'static str, message: impl Into<String>) -> Outcome {
        Outcome::Answer(Reply::Fault(Fault::new(code, message)))
    }

    #[test]
    fn a_sign_out_answers_with_an_empty_object() {
        for pool in POOLS {
            assert_eq!(sign_out(pool.region, pool.id, "zoë🦀"), success(json!({})));
        }
    }

    #[test]
    fn one_region_does_not_know_the_pools_of_another() {
        let pool = POOLS[0].id;
        let unknown = |pool| fault("ResourceNotFoundException", format!("User pool {pool} does not exist."));
        assert_eq!(sign_out("eu-central-1", pool, "ada"), unknown(pool));
        assert_eq!(sign_out("us-east-1", "us-east-1_nope", "ada"), unknown("us-east-1_nope"));
    }

    #[test]
    fn an_admin_call_must_look_signed() {
        let refused = |authorization: Option<&str>| match call("AdminUserGlobalSignOut", authorization, "{}")
        {
            Outcome::Answer(Reply::Fault(fault)) => fault.code,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(None), "MissingAuthenticationTokenException");
        for malformed in [
            "Bearer token",
            "AWS4-HMAC-SHA256 ",
            "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/cognito-idp/aws4_request",
            &signed("AKID/us-east-1/cognito-idp/aws4_request"),
            &signed("AKID/today/us-east-1/cognito-idp/aws4_request"),
        ] {
            assert_eq!(refused(Some(malformed)), "IncompleteSignatureException", "{malformed}");
        }
        for wrong in
            ["AKID/20260101/us-east-1/sts/aws4_request", "AKID/20260101/us-east-1/cognito-idp/aws2_request"]
        {
            assert_eq!(refused(Some(&signed(wrong))), "InvalidSignatureException", "{wrong}");
        }
    }

    #[test]
    fn violations_read_as_cognitos() {
        let invalid = |message: &str| fault("InvalidParameterException", message);
        assert_eq!(
            sign_out("us-east-1", "nonsense", "ada"),
            invalid(
                r"1 validation error detected: Value 'nonsense' at 'userPoolId' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w-]+_[0-9a-zA-Z]+"
            )
        );
        assert_eq!(
            sign_out("us-east-1", POOLS[0].id, &"ü".repeat(129)),
            invalid(
                "1 validation error detected: Value at 'username' failed to satisfy constraint: Member must have length less than or equal to 128"
            )
        );
        assert_eq!(
            sign_out("us-east-1", POOLS[0].id, ""),
            invalid(
                r"2 validation errors detected: Value at 'username' failed to satisfy constraint: Member must satisfy regular expression pattern: [\p{L}\p{M}\p{S}\p{N}\p{P}]+; Value at 'username' failed to satisfy constraint: Member must have length greater than or equal to 1"
            )
        );
        assert_eq!(
            call("GetUser", None, "{}"),
            invalid(
                "1 validation error detected: Value at 'accessToken' failed to satisfy constraint: Member must not be null"
            )
        );
    }

    #[test]
    fn unreadable_input_is_a_serialization_exception() {
        let silent =
            || Outcome::Answer(Reply::Fault(Fault { code: "SerializationException", message: None }));
        for body in ["", "{", "[]", "null", "\"text\"", "{} {}"] {
            assert_eq!(call("GetUser", None, body), silent(), "{body}");
        }
        let conversion = "NUMBER_VALUE can not be converted to a String";
        let body = r#"{"AccessToken": 5}"#;
        assert_eq!(call("GetUser", None, body), fault("SerializationException", conversion));
        let deep = "[".repeat(100_000);
        assert_eq!(call("GetUser", None, &deep), silent());
    }

    #[test]
    fn sign_in_renewal_and_sign_out() {
        let directory = Directory::default();
        let auth = |flow: &str, parameters: Value| {
            let body =
                json!({ "AuthFlow": flow, "ClientId": POOLS[0].client_id, "AuthParameters": parameters });
            call_at(&directory, "InitiateAuth", None, &body.to_string())
        };
        let result = |outcome| match outcome {
            Outcome::Answer(Reply::Success(body)) => body["AuthenticationResult"].clone(),
            other => panic!("{other:?}"),
        };
        let password = json!({ "USERNAME": "ada@example.com", "PASSWORD": "Analytical-1843" });
        let first = result(auth("USER_PASSWORD_AUTH", password));
        let renew = |flow| auth(flow, json!({ "REFRESH_TOKEN": first["RefreshToken"] }));
        let renewed = result(renew("REFRESH_TOKEN"));
        assert_eq!(renewed["RefreshToken"], Value::Null);
        let user = |token: &Value| {
            call_at(&directory, "GetUser", None, &json!({ "AccessToken": token }).to_string())
        };
        assert!(
            matches!(user(&renewed["AccessToken"]), Outcome::Answer(Reply::Success(body)) if body["Username"] == "ada")
        );

        let authorization = signed("AKID/20260101/us-east-1/cognito-idp/aws4_request");
        let body = json!({ "UserPoolId": POOLS[0].id, "Username": "ada" }).to_string();
        let done = call_at(&directory, "AdminUserGlobalSignOut", Some(&authorization), &body);
        assert_eq!(done, success(json!({})));

        let refused = |message: &str| fault("NotAuthorizedException", message);
        assert_eq!(user(&first["AccessToken"]), refused("Access Token has been revoked"));
        assert_eq!(user(&renewed["AccessToken"]), refused("Access Token has been revoked"));
        assert_eq!(renew("REFRESH_TOKEN_AUTH"), refused("Refresh Token has been revoked"));
    }

    #[test]
    fn a_sign_in_is_refused_in_cognitos_words() {
        let auth = |client: &str, flow: &str, parameters: Value| {
            let body = json!({ "AuthFlow": flow, "ClientId": client, "AuthParameters": parameters });
            call("InitiateAuth", None, &body.to_string())
        };
        let client = POOLS[0].client_id;
        let user = |name: &str| json!({ "USERNAME": name, "PASSWORD": "wrong" });
        assert_eq!(
            auth(client, "USER_PASSWORD_AUTH", user("ada")),
            fault("NotAuthorizedException", "Incorrect username or password.")
        );
        assert_eq!(
            auth(client, "USER_PASSWORD_AUTH", user("nobody")),
            fault("UserNotFoundException", "User does not exist.")
        );
        assert_eq!(
            auth("other", "USER_PASSWORD_AUTH", user("ada")),
            fault("ResourceNotFoundException", "User pool client other does not exist.")
        );
        assert_eq!(
            auth(client, "USER_PASSWORD_AUTH", json!({ "USERNAME": "ada" })),
            fault("InvalidParameterException", "Missing required parameter PASSWORD")
        );
        assert_eq!(
            auth(client, "REFRESH_TOKEN_AUTH", json!({ "REFRESH_TOKEN": "a.b.c" })),
            fault("NotAuthorizedException", "Invalid Refresh Token")
        );
        assert_eq!(
            auth(client, "USER_SRP_AUTH", json!({})),
            fault("InvalidParameterException", "USER_SRP_AUTH flow not enabled for this client")
        );
    }
}
