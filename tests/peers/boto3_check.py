#!/usr/bin/env python3
"""Checks the embedded Cognito with boto3, a client that knows nothing of it.

Usage: boto3_check.py URL        (needs: pip install boto3)

Prints one line for each check, and at the end how many passed and failed.
"""

import base64
import http.client
import json
import sys
import traceback
import urllib.error
import urllib.request

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

POOLS = [
    ("us-east-1", "us-east-1_EXAMPLE01", "4useast1exampleclient00001"),
    ("eu-central-1", "eu-central-1_EXAMPLE02", "4eucentral1exampleclient02"),
]
USERS = [
    ("ada", "Analytical-1843", "ada@example.com"),
    ("grace", "Nanosecond-1906", "grace@example.com"),
    ("linus", "Penguin-1991", "linus@example.com"),
    ("zoë🦀", "Ferris-2015", "zoe@example.com"),
]
SPECIAL_PASSWORD = "Special-2024"

URL = sys.argv[1].rstrip("/") if len(sys.argv) == 2 else sys.exit(__doc__)
REGION, POOL, CLIENT = POOLS[0]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def connect(region=REGION, **options):
    """A client with any credentials, for one attempt a call."""
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=False, **options)
    return boto3.client(
        "cognito-idp",
        endpoint_url=URL,
        region_name=region,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="example",
        config=config,
    )


COGNITO = connect()


def refused(code, call, **arguments):
    """Calls, expects the exception class of that code, and returns the answer's error and metadata."""
    try:
        call(**arguments)
    except ClientError as error:
        metadata = error.response["ResponseMetadata"]
        assert error.response["Error"]["Code"] == code, error
        assert metadata["RequestId"], metadata
        assert metadata["HTTPHeaders"]["date"], metadata
        modeled = getattr(COGNITO.exceptions, code, None) if code in modeled_codes() else ClientError
        assert type(error) is modeled, type(error)
        return error.response["Error"]["Message"], metadata
    raise AssertionError(f"the call succeeded, {code} was expected")


def modeled_codes():
    return {shape.name for shape in COGNITO.meta.service_model.error_shapes}


def post(operation, body):
    """A request by hand, signed in form only, which is all that is asked for."""
    scope = f"AKIDEXAMPLE/20260101/{REGION}/cognito-idp/aws4_request"
    headers = {
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": f"AWSCognitoIdentityProviderService.{operation}",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=00",
    }
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(URL, data, headers))


def sign_out(username, pool=POOL, client=COGNITO):
    return client.admin_user_global_sign_out(UserPoolId=pool, Username=username)


def sign_in(username, password, app=CLIENT):
    answer = COGNITO.initiate_auth(
        AuthFlow="USER_PASSWORD_AUTH",
        ClientId=app,
        AuthParameters={"USERNAME": username, "PASSWORD": password},
    )
    assert answer["ChallengeParameters"] == {}, answer
    return answer["AuthenticationResult"]


def renew(tokens, app=CLIENT, flow="REFRESH_TOKEN_AUTH"):
    parameters = {"REFRESH_TOKEN": tokens["RefreshToken"]}
    answer = COGNITO.initiate_auth(AuthFlow=flow, ClientId=app, AuthParameters=parameters)
    return answer["AuthenticationResult"]


def claims(token):
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def assert_alive(tokens, username, app=CLIENT):
    assert COGNITO.get_user(AccessToken=tokens["AccessToken"])["Username"] == username
    assert renew(tokens, app)["AccessToken"]


def assert_dead(tokens, app=CLIENT):
    code = "NotAuthorizedException"
    message, _ = refused(code, COGNITO.get_user, AccessToken=tokens["AccessToken"])
    assert message == "Access Token has been revoked", message
    message, _ = refused(code, renew, tokens=tokens, app=app)
    assert message == "Refresh Token has been revoked", message


@check
def every_user_of_every_pool_is_signed_out_and_can_sign_in_again():
    for region, pool, app in POOLS:
        client = connect(region)
        for username, password, email in USERS:
            tokens = sign_in(username, password, app)
            by_email = sign_in(email, password, app)
            assert_alive(tokens, username, app)
            answer = sign_out(username, pool, client)
            metadata = answer.pop("ResponseMetadata")
            assert answer == {}, answer
            assert metadata["HTTPStatusCode"] == 200, metadata
            assert metadata["RequestId"] and metadata["HTTPHeaders"]["date"], metadata
            assert_dead(tokens, app)
            assert_dead(by_email, app)
            assert_alive(sign_in(username, password, app), username, app)


@check
def a_sign_out_by_email_or_sub_signs_out_the_user():
    for alias in ["email", "sub"]:
        tokens = sign_in("ada", "Analytical-1843")
        attributes = COGNITO.get_user(AccessToken=tokens["AccessToken"])["UserAttributes"]
        sign_out({item["Name"]: item["Value"] for item in attributes}[alias])
        assert_dead(tokens)


@check
def a_sign_out_touches_no_other_user_and_no_other_pool():
    grace = sign_in("grace", "Nanosecond-1906")
    elsewhere = sign_in("ada", "Analytical-1843", POOLS[1][2])
    sign_out("ada")
    assert_alive(grace, "grace")
    assert_alive(elsewhere, "ada", POOLS[1][2])


@check
def tokens_have_the_shape_of_cognitos():
    tokens = sign_in("grace", "Nanosecond-1906")
    assert tokens["ExpiresIn"] == 3600 and tokens["TokenType"] == "Bearer", tokens
    access, identity = claims(tokens["AccessToken"]), claims(tokens["IdToken"])
    assert access["token_use"] == "access" and identity["token_use"] == "id"
    assert access["username"] == identity["cognito:username"] == "grace"
    assert access["client_id"] == identity["aud"] == CLIENT
    assert access["iss"] == f"https://cognito-idp.{REGION}.amazonaws.com/{POOL}"
    assert access["exp"] - access["iat"] == 3600
    assert access["sub"] == identity["sub"] and access["origin_jti"] == identity["origin_jti"]


@check
def a_renewal_brings_no_new_refresh_token():
    tokens = sign_in("linus", "Penguin-1991")
    for flow in ["REFRESH_TOKEN_AUTH", "REFRESH_TOKEN"]:
        renewed = renew(tokens, flow=flow)
        assert "RefreshToken" not in renewed, renewed
        assert claims(renewed["AccessToken"])["origin_jti"] == claims(tokens["AccessToken"])["origin_jti"]
        assert COGNITO.get_user(AccessToken=renewed["AccessToken"])["Username"] == "linus"


@check
def tokens_made_by_a_renewal_die_with_the_others():
    tokens = sign_in("linus", "Penguin-1991")
    renewed = renew(tokens)
    sign_out("linus")
    assert_dead({**tokens, **renewed})


@check
def sign_ins_are_refused_in_cognitos_words():
    message, _ = refused("NotAuthorizedException", sign_in, username="ada", password="wrong")
    assert message == "Incorrect username or password.", message
    message, _ = refused("UserNotFoundException", sign_in, username="nobody", password="wrong")
    assert message == "User does not exist.", message
    message, _ = refused("ResourceNotFoundException", sign_in, username="ada", password="wrong", app="other")
    assert message == "User pool client other does not exist.", message


@check
def invalid_tokens_are_refused():
    tokens = sign_in("ada", "Analytical-1843")
    code = "NotAuthorizedException"
    message, _ = refused(code, COGNITO.get_user, AccessToken="a.b.c")
    assert message == "Invalid Access Token", message
    message, _ = refused(code, COGNITO.get_user, AccessToken=tokens["IdToken"])
    assert message == "Invalid Access Token", message
    message, _ = refused(code, renew, tokens={"RefreshToken": "a.b.c"})
    assert message == "Invalid Refresh Token", message
    message, _ = refused(code, renew, tokens=tokens, app=POOLS[1][2])
    assert message == "Invalid Refresh Token", message


@check
def an_unknown_user_and_an_unknown_pool_are_told_apart():
    message, metadata = refused("UserNotFoundException", sign_out, username="nobody")
    assert message == "User does not exist.", message
    headers = metadata["HTTPHeaders"]
    assert headers["x-amzn-errortype"] == "UserNotFoundException:", headers
    assert headers["x-amzn-errormessage"] == message, headers
    message, _ = refused("ResourceNotFoundException", sign_out, username="ada", pool="us-east-1_nope")
    assert message == "User pool us-east-1_nope does not exist.", message


@check
def one_region_does_not_know_the_pools_of_another():
    elsewhere = connect(POOLS[1][0])
    message, _ = refused("ResourceNotFoundException", sign_out, username="ada", client=elsewhere)
    assert message == f"User pool {POOL} does not exist.", message


@check
def fields_are_validated():
    for pool, username, words in [
        ("nonsense", "ada", r"Value 'nonsense' at 'userPoolId' failed to satisfy constraint: Member must satisfy"),
        ("us-east-1_" + "x" * 46, "ada", "Member must have length less than or equal to 55"),
        (POOL, "", "2 validation errors detected: Value at 'username' failed to satisfy constraint"),
        (POOL, "x" * 129, "Member must have length less than or equal to 128"),
        (POOL, "a b", r"pattern: [\p{L}\p{M}\p{S}\p{N}\p{P}]+"),
        (None, "ada", "1 validation error detected: Value null at 'userPoolId'"),
    ]:
        message, _ = refused("InvalidParameterException", sign_out, username=username, pool=pool)
        assert words in message, message


@check
def every_modeled_exception_has_a_username():
    seen = set()
    for username, code, status in [
        ("too-many-requests", "TooManyRequestsException", 400),
        ("internal-error", "InternalErrorException", 500),
        ("not-authorized", "NotAuthorizedException", 400),
        ("invalid-parameter", "InvalidParameterException", 400),
        ("operation-not-enabled", "OperationNotEnabledException", 400),
        ("resource-not-found", "ResourceNotFoundException", 400),
        ("user-not-found", "UserNotFoundException", 400),
    ]:
        _, metadata = refused(code, sign_out, username=username)
        assert metadata["HTTPStatusCode"] == status, (username, metadata)
        seen.add(code)
    operation = COGNITO.meta.service_model.operation_model("AdminUserGlobalSignOut")
    assert seen == {shape.name for shape in operation.error_shapes}, seen


@check
def so_have_failures_that_the_model_does_not_list():
    for username, code, status, words in [
        ("access-denied", "AccessDeniedException", 400, f":userpool/{POOL} because no identity-based policy"),
        ("forbidden", "ForbiddenException", 403, "WAF"),
        ("expired-token", "ExpiredTokenException", 400, "expired"),
        ("unrecognized-client", "UnrecognizedClientException", 400, "security token"),
        ("invalid-signature", "InvalidSignatureException", 400, "signature"),
    ]:
        message, metadata = refused(code, sign_out, username=username)
        assert metadata["HTTPStatusCode"] == status, (username, metadata)
        assert words in message, message


@check
def a_failed_sign_out_leaves_the_tokens_alive():
    for username in ["too-many-requests", "internal-error", "access-denied", "unavailable"]:
        tokens = sign_in(username, SPECIAL_PASSWORD)
        try:
            sign_out(username)
        except ClientError:
            assert_alive(tokens, username)
        else:
            raise AssertionError(username)


@check
def unavailable_is_a_503_without_a_code():
    try:
        sign_out("unavailable")
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 503, error
        assert "x-amzn-errortype" not in error.response["ResponseMetadata"]["HTTPHeaders"], error
    else:
        raise AssertionError("the call succeeded")


@check
def throttled_once_takes_turns():
    outcomes = []
    for _ in range(4):
        try:
            sign_out("throttled-once")
            outcomes.append("signed out")
        except COGNITO.exceptions.TooManyRequestsException:
            outcomes.append("throttled")
    assert sorted(outcomes[:2]) == ["signed out", "throttled"], outcomes
    assert outcomes[:2] == outcomes[2:], outcomes


@check
def slow_answers_arrive_and_have_acted_before():
    sign_out("slow-50ms")
    impatient = connect(read_timeout=0.3)
    for username in ["slow", "slow-60000ms", "never"]:
        tokens = sign_in(username, SPECIAL_PASSWORD)
        try:
            sign_out(username, client=impatient)
        except ReadTimeoutError:
            assert_dead(tokens)
        else:
            raise AssertionError(f"{username} was answered")


@check
def a_dropped_connection_comes_after_the_sign_out():
    tokens = sign_in("drop", SPECIAL_PASSWORD)
    try:
        sign_out("drop")
    except ConnectionClosedError:
        assert_dead(tokens)
    else:
        raise AssertionError("the call succeeded")


@check
def half_an_answer_comes_after_the_sign_out():
    tokens = sign_in("half", SPECIAL_PASSWORD)
    # Not with boto3: it takes a body that is shorter than announced for a success.
    try:
        with post("AdminUserGlobalSignOut", {"UserPoolId": POOL, "Username": "half"}) as answer:
            assert answer.status == 200 and answer.headers["Content-Length"] == "64"
            answer.read()
    except http.client.IncompleteRead as error:
        assert error.partial == b"{", error
        assert_dead(tokens)
    else:
        raise AssertionError("the whole answer arrived")


@check
def an_admin_call_must_be_signed():
    unsigned = connect(signature_version=UNSIGNED)
    refused("MissingAuthenticationTokenException", sign_out, username="ada", client=unsigned)


@check
def an_operation_that_is_not_there_is_unknown():
    refused("UnknownOperationException", COGNITO.list_users, UserPoolId=POOL)


@check
def json_that_is_not_json_is_a_serialization_exception():
    try:
        post("GetUser", b"{")
    except urllib.error.HTTPError as error:
        assert error.code == 400, error
        assert json.load(error)["__type"] == "SerializationException"
    else:
        raise AssertionError("the call succeeded")


@check
def a_browser_is_told_what_this_is():
    with urllib.request.urlopen(URL) as answer:
        assert "fake" in answer.read().decode()


def main():
    failed = 0
    for function in CHECKS:
        title = function.__name__.replace("_", " ")
        try:
            function()
            print(f"ok      {title}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED  {title}", flush=True)
            traceback.print_exc()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
