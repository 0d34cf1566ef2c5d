"""Signs users out through the sidecar with moto as Cognito, called by a client that Python's protoc generated.

Usage: moto_check.py BINARY, with the stubs generated from proto/ on PYTHONPATH (tests/peers/run sees to both).
moto knows users, pools, tokens and regions; it never throttles or fails, so that is left to the Rust tests.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import boto3
import grpc
from botocore.exceptions import ClientError
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from moto.server import ThreadedMotoServer

from cognito.signout.v1 import sign_out_pb2, sign_out_pb2_grpc

PASSWORD = "Correct-horse-7"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "example"}
DOMAIN = "cognito.signout.v1"


def main():
    binary = sys.argv[1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the sidecar is stopped too
    with moto() as url:
        frankfurt = Region(url, "eu-central-1")
        virginia = Region(url, "us-east-1")
        pool = frankfurt.pool(users=["ada", "Zoë+test@example.org"])
        abroad = virginia.pool(users=["grace"])
        misplaced = frankfurt.pool(users=["ada"])

        with sidecar(binary, url, pool_region=f"{misplaced.id}=us-east-1") as stub:
            ends_every_session(stub, pool, "ada")
            ends_every_session(stub, pool, "Zoë+test@example.org")
            ends_every_session(stub, abroad, "grace")
            tells_unknown_user(stub, pool)
            tells_unknown_pool(stub)
            tells_pool_in_another_region(stub, misplaced)
    print("moto_check: all as told")


# What is checked.


def ends_every_session(stub, pool, username):
    before = pool.sign_in(username)
    pool.get_user(before)
    pool.refresh(before)

    answer = sign_out(stub, pool.id, username)

    assert answer.aws_request_id, answer
    assert abs(answer.signed_out_at.ToSeconds() - time.time()) < 60, answer
    refused("NotAuthorizedException", pool.get_user, before)
    refused("NotAuthorizedException", pool.refresh, before)
    pool.get_user(pool.sign_in(username))
    said(f"{username} in {pool.region}: the old tokens are refused, a new sign-in works")


def tells_unknown_user(stub, pool):
    status, info = failure(stub, pool.id, "nobody")
    expect(status, info, grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND")
    expect_metadata(info, aws_error_code="UserNotFoundException", user_pool_id=pool.id, region=pool.region)
    assert "nobody" not in status.message, status
    said("a user that the pool does not have")


def tells_unknown_pool(stub):
    status, info = failure(stub, "eu-central-1_NoSuchPool", "ada")
    expect(status, info, grpc.StatusCode.NOT_FOUND, "USER_POOL_NOT_FOUND")
    expect_metadata(info, aws_error_code="ResourceNotFoundException", region="eu-central-1")
    said("a pool that nobody has")


def tells_pool_in_another_region(stub, misplaced):
    """The sidecar was told the wrong region for this pool; the status names the region that was asked."""
    before = misplaced.sign_in("ada")
    status, info = failure(stub, misplaced.id, "ada")
    expect(status, info, grpc.StatusCode.NOT_FOUND, "USER_POOL_NOT_FOUND")
    expect_metadata(info, user_pool_id=misplaced.id, region="us-east-1")
    misplaced.get_user(before)
    said("a pool asked for in the wrong region: refused, and its user is still signed in")


# How the sidecar is asked.


def sign_out(stub, pool_id, username):
    request = sign_out_pb2.AdminUserGlobalSignOutRequest(user_pool_id=pool_id, username=username)
    return stub.AdminUserGlobalSignOut(request, timeout=10)


def failure(stub, pool_id, username):
    """The google.rpc.Status of a call that must fail, and its one ErrorInfo."""
    try:
        answer = sign_out(stub, pool_id, username)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        assert status is not None, f"no details in {error!r}"
    else:
        raise AssertionError(f"expected a failure, got {answer!r}")
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1, status
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    return status, info


def expect(status, info, code, reason):
    assert (status.code, info.reason, info.domain) == (code.value[0], reason, DOMAIN), (status, info)
    # Cognito was asked and said no, and asking again would not change that.
    expect_metadata(info, fault="caller", retryable="false", outcome="refused")


def expect_metadata(info, **expected):
    found = {key: info.metadata.get(key) for key in expected}
    assert found == expected, f"expected {expected} in {dict(info.metadata)}"


def refused(code, call, *arguments):
    try:
        call(*arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error
    else:
        raise AssertionError(f"{call.__name__} worked, although it should have been refused with {code}")


def said(line):
    print(f"ok: {line}", flush=True)


# What runs.


@contextlib.contextmanager
def moto():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it prints a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def sidecar(binary, cognito, pool_region):
    """A sidecar in front of `cognito`; asked to stop at the end, it must leave with status 0."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        **CREDENTIALS,
        "AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": cognito,
        # No pool lives there: this variable must not choose a pool's region.
        "AWS_REGION": "ap-south-1",
        "COGNITO_SIGNOUT_ADMIN_LISTEN": "127.0.0.1:0",
    }
    command = [binary, "serve", "--listen", address, "--pool-region", pool_region]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            with grpc.insecure_channel(address) as channel:
                wait_until_ready(channel, process)
                yield sign_out_pb2_grpc.SignOutServiceStub(channel)
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=30)
            assert status == 0, f"the sidecar left with status {status} after SIGTERM"
            said("SIGTERM: the sidecar leaves with status 0")
        except BaseException:
            log.seek(0)
            print(f"--- the sidecar's output\n{log.read().decode(errors='replace')}---", file=sys.stderr)
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_until_ready(channel, process):
    ready = grpc.channel_ready_future(channel)
    deadline = time.monotonic() + 30
    while True:
        try:
            return ready.result(timeout=0.5)
        except grpc.FutureTimeoutError:
            assert process.poll() is None, f"the sidecar ended at once, with status {process.returncode}"
            assert time.monotonic() < deadline, "the sidecar took no connection for 30 s"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Region:
    """One AWS region of moto, spoken to with boto3."""

    def __init__(self, url, name):
        self.name = name
        self.cognito = boto3.client(
            "cognito-idp",
            region_name=name,
            endpoint_url=url,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    def pool(self, users):
        pool_id = self.cognito.create_user_pool(PoolName="staff")["UserPool"]["Id"]
        client = self.cognito.create_user_pool_client(
            UserPoolId=pool_id,
            ClientName="web",
            ExplicitAuthFlows=["ALLOW_USER_PASSWORD_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"],
        )
        for user in users:
            self.cognito.admin_create_user(UserPoolId=pool_id, Username=user, MessageAction="SUPPRESS")
            self.cognito.admin_set_user_password(
                UserPoolId=pool_id, Username=user, Password=PASSWORD, Permanent=True
            )
        return Pool(self, pool_id, client["UserPoolClient"]["ClientId"])


class Pool:
    """A user pool and its app client, as the users' own devices see them."""

    def __init__(self, region, pool_id, client_id):
        self.id = pool_id
        self.region = region.name
        self.client_id = client_id
        self.cognito = region.cognito

    def sign_in(self, username):
        return self.cognito.initiate_auth(
            ClientId=self.client_id,
            AuthFlow="USER_PASSWORD_AUTH",
            AuthParameters={"USERNAME": username, "PASSWORD": PASSWORD},
        )["AuthenticationResult"]

    def refresh(self, tokens):
        return self.cognito.initiate_auth(
            ClientId=self.client_id,
            AuthFlow="REFRESH_TOKEN_AUTH",
            AuthParameters={"REFRESH_TOKEN": tokens["RefreshToken"]},
        )

    def get_user(self, tokens):
        return self.cognito.get_user(AccessToken=tokens["AccessToken"])


if __name__ == "__main__":
    main()
