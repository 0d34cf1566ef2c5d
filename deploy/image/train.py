"""Lets a binary that counts what it does serve what a sidecar serves: `train.py BINARY FOLDER`, for deploy/image/build.

The compiler reads the counts (FOLDER/*.profraw), so what is done here is what the image is fast at, and what is not done here is
kept apart from it (layout.py): sign-outs one at a time and many at once, a few that fail, a stream, probes and scrapes, before a
Cognito on loopback; by plain HTTP with keys from the environment, and by TLS on both sides with those of a role. Before all that it
starts and does nothing (FOLDER/idle.profraw). Ends with an error if anything is answered otherwise than it should be.
"""

import http.client
import json
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import cognito
import grpc
import trustme

SERVICE = "/cognito.signout.v1.SignOutService/"
POOL = b"eu-central-1_EXAMPLE02"
NOBODY = b"nobody"


def serve_cognito(context=None):
    server = cognito.server(context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"


def field(number, value):
    """A short field of a protobuf message."""
    return bytes([number << 3 | 2, len(value)]) + value


def sign_out(username):
    return field(1, POOL) + field(2, username)


def users(n):
    return [b"user-%06d@example.com" % user for user in range(n)]


def serve(counts, endpoint, *flags, **environment):
    """A sidecar before that Cognito, with the addresses where it serves gRPC and probes; its counts are named so."""
    binary, folder = sys.argv[1:]
    sidecar = subprocess.Popen(
        [binary, "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--log-format=json", *flags],
        env={
            "LLVM_PROFILE_FILE": f"{folder}/{counts}.profraw",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": endpoint,
            **environment,
        },
        stderr=subprocess.PIPE,
    )
    addresses = {}
    for line in sidecar.stderr:
        told = json.loads(line)
        if told["message"].startswith("serving "):
            addresses[told["message"]] = told["address"]
        if len(addresses) == 2:
            break
    else:
        sys.exit(f"{binary} does not serve")
    # Whatever else it logs has to go somewhere.
    threading.Thread(target=sidecar.stderr.read, daemon=True).start()
    return sidecar, addresses["serving gRPC"], addresses["serving probes"]


def many(call, requests, in_flight):
    """Makes calls, so many at one time, all of which have to succeed."""
    under_way = threading.Semaphore(in_flight)
    answers = []
    for request in requests:
        under_way.acquire()
        answer = call.future(request, timeout=60)
        answer.add_done_callback(lambda _: under_way.release())
        answers.append(answer)
    for answer in answers:
        answer.result()


def connect(address, roots=None):
    """A channel; by TLS if there are roots to verify the certificate with."""
    if roots is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots))


def work(api, admin, roots):
    with connect(api, roots) as channel:
        call = channel.unary_unary(SERVICE + "AdminUserGlobalSignOut")
        for in_flight, calls in [(1, 500), (16, 2000), (64, 2000)]:
            many(call, [sign_out(user) for user in users(calls)], in_flight)
        for refused, code in [(NOBODY, grpc.StatusCode.NOT_FOUND), (b"", grpc.StatusCode.INVALID_ARGUMENT)]:
            for _ in range(20):
                try:
                    call(sign_out(refused), timeout=60)
                    sys.exit(f"{refused} was signed out")
                except grpc.RpcError as error:
                    if error.code() != code:
                        sys.exit(f"{refused}: {error}")
        stream = channel.stream_stream(SERVICE + "BulkAdminUserGlobalSignOut")
        items = [field(2, sign_out(user)) for user in users(30)]
        answers = sum(1 for _ in stream(iter(items), timeout=60))
        if answers != len(items):
            sys.exit(f"{answers} answers for {len(items)} items")
    for path in ["/livez", "/readyz", "/metrics"] * 5:
        connection = http.client.HTTPConnection(admin, timeout=20)
        connection.request("GET", path)
        if connection.getresponse().status != 200:
            sys.exit(f"{path} does not answer 200")
        connection.close()
    with connect(admin) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for _ in range(20):
            check(b"", timeout=20)


def nothing(*_):
    """Until all has been done that is done before the first call."""
    time.sleep(2)


def exercise(sidecar, api, admin, roots=None, work=work):
    try:
        work(api, admin, roots)
        sidecar.send_signal(signal.SIGTERM)
        if sidecar.wait(20) != 0:
            sys.exit(f"the sidecar ends with {sidecar.returncode}")
    finally:
        sidecar.kill()


if __name__ == "__main__":
    keys = {"AWS_ACCESS_KEY_ID": "AKIDTRAINTRAINTRAIN0", "AWS_SECRET_ACCESS_KEY": "secret"}
    exercise(*serve("idle", serve_cognito(), **keys), work=nothing)
    exercise(*serve("paced", serve_cognito(), "--quota-rps=100000", **keys))
    exercise(*serve("plain", serve_cognito(), **keys))
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with (
        authority.cert_pem.tempfile() as roots,
        certificate.private_key_and_cert_chain_pem.tempfile() as pem,
        tempfile.NamedTemporaryFile() as token,
    ):
        token.write(b"token")
        token.flush()
        aws = serve_cognito(context)
        role = {
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/sign-out",
            "AWS_WEB_IDENTITY_TOKEN_FILE": token.name,
            "AWS_REGION": "eu-central-1",
            "AWS_ENDPOINT_URL_STS": aws,
            "SSL_CERT_FILE": roots,
        }
        served = serve("tls", aws, f"--tls-cert={pem}", f"--tls-key={pem}", **role)
        exercise(*served, roots=authority.cert_pem.bytes())
