"""Signs users out of Amazon Cognito, everywhere, through the sidecar. One file to copy into a service."""

import logging
import random
import time

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from cognito.signout.v1 import sign_out_pb2, sign_out_pb2_grpc

MAX_ATTEMPTS = 3
alerts = logging.getLogger("alerts")


class SignOutFailed(Exception):
    """Why a user was not signed out, or perhaps not: `outcome` "unknown" means that it may have happened."""

    def __init__(self, error: grpc.RpcError):
        self.code = error.code()
        self.message = error.details()
        self.reason = ""
        self.metadata = {}
        self.retry_after = None
        self.request_id = ""
        self.fields = []
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            for kind, read in self._READ.items():
                if detail.Is(kind.DESCRIPTOR):
                    message = kind()
                    detail.Unpack(message)
                    read(self, message)
        super().__init__(f"{self.code.name} {self.reason}: {self.message}")

    def _error_info(self, info):
        self.reason, self.metadata = info.reason, dict(info.metadata)

    def _retry_info(self, info):
        self.retry_after = info.retry_delay.ToTimedelta().total_seconds()

    def _request_info(self, info):
        self.request_id = info.request_id

    def _bad_request(self, bad):
        self.fields = [violation.field for violation in bad.field_violations]

    _READ = {
        error_details_pb2.ErrorInfo: _error_info,
        error_details_pb2.RetryInfo: _retry_info,
        error_details_pb2.RequestInfo: _request_info,
        error_details_pb2.BadRequest: _bad_request,
    }

    # Without details it was the gRPC library that failed: only UNAVAILABLE says that another attempt may help.

    @property
    def fault(self):
        return self.metadata.get("fault", "")

    @property
    def retryable(self):
        return self.metadata.get("retryable") == "true" if self.reason else self.code == grpc.StatusCode.UNAVAILABLE

    @property
    def outcome(self):
        return self.metadata.get("outcome", "unknown")

    @property
    def does(self):
        """What to do about it: retry, raise (the caller has to know), or alert (somebody has to act) and raise."""
        if self.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return "raise"  # nobody waits any more; a new call is a new decision
        if self.retryable:
            return "retry"
        return "alert" if self.fault in ("sidecar", "aws") else "raise"


class SignOutClient:
    """One for each process: it holds a connection. `address` is HOST:PORT, unix:/PATH or ipv4:HOST:PORT,HOST:PORT.

    `ca`, `cert` and `key` are files for mTLS. `token_file` is read anew for every call, and sent over TLS only.
    """

    def __init__(self, address, *, ca=None, cert=None, key=None, token_file=None, service_config=None):
        options = [("grpc.service_config", _read(service_config).decode())] if service_config else []
        if address.startswith("unix:") or "," in address:
            # grpcio would send the path, or the list, as the HTTP/2 authority, which is none: the server resets such calls.
            options.append(("grpc.default_authority", "localhost"))
        if ca:
            credentials = grpc.ssl_channel_credentials(_read(ca), _read(key), _read(cert))
            if token_file:
                token = grpc.metadata_call_credentials(
                    lambda _, done: done([("authorization", f"Bearer {_read(token_file).decode().strip()}")], None)
                )
                credentials = grpc.composite_channel_credentials(credentials, token)
            self.channel = grpc.secure_channel(address, credentials, options)
        else:
            if token_file:
                raise ValueError("a token is not sent without TLS")
            self.channel = grpc.insecure_channel(address, options)
        self.stub = sign_out_pb2_grpc.SignOutServiceStub(self.channel)

    def sign_out(self, user_pool_id, username, timeout=10.0, traceparent=None):
        """Tries again as the sidecar advises, within `timeout` seconds. Raises SignOutFailed."""
        deadline = time.monotonic() + timeout
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return self.attempt(user_pool_id, username, deadline - time.monotonic(), traceparent)
            except SignOutFailed as failure:
                if failure.does == "alert":
                    alerts.error("sign-outs do not work: %s (AWS request id %s)", failure, failure.request_id)
                wait = failure.retry_after if failure.retry_after is not None else random.uniform(0, 0.1 * 2**attempt)
                if failure.does != "retry" or attempt == MAX_ATTEMPTS or time.monotonic() + wait >= deadline:
                    raise
                time.sleep(wait)

    def attempt(self, user_pool_id, username, timeout, traceparent=None):
        """Tries once."""
        try:
            return self.start(user_pool_id, username, timeout, traceparent).result()
        except grpc.RpcError as error:
            raise SignOutFailed(error) from error

    def start(self, user_pool_id, username, timeout, traceparent=None, wait_for_ready=None):
        """The call as a future, which can be cancelled. W3C trace context travels as metadata."""
        request = sign_out_pb2.AdminUserGlobalSignOutRequest(user_pool_id=user_pool_id, username=username)
        metadata = [("traceparent", traceparent)] if traceparent else None
        return self.stub.AdminUserGlobalSignOut.future(
            request, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready
        )

    def watch_health(self, service=""):
        """An iterator over SERVING, NOT_SERVING and so on, as they change."""
        watch = health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest(service=service))
        for answer in watch:
            yield health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _read(path):
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    import sys

    try:
        done = SignOutClient(sys.argv[1]).sign_out(*sys.argv[2:4])
        print("signed out at", done.signed_out_at.ToJsonString(), "AWS request id", done.aws_request_id)
    except SignOutFailed as failed:
        sys.exit(f"{failed}; does: {failed.does}; the user may be signed out: {failed.outcome == 'unknown'}")
