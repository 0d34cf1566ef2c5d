"""A tool that knows nothing of our proto, `buf curl`, learns it by reflection from `cognito-signout serve`.

Arguments: the binary, buf, and the URL of a `cognito-signout emulate`.
"""

import base64
import json
import os
import subprocess
import sys

from google.rpc import error_details_pb2

SERVICE = "cognito.signout.v1.SignOutService"
METHOD = f"{SERVICE}/AdminUserGlobalSignOut"


def main(binary, buf, emulator):
    environment = os.environ | {
        "AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": emulator,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "COGNITO_SIGNOUT_LISTEN": "127.0.0.1:0",
        "COGNITO_SIGNOUT_ADMIN_LISTEN": "127.0.0.1:0",
        "COGNITO_SIGNOUT_LOG_FORMAT": "json",
    }
    sidecar = subprocess.Popen([binary, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in sidecar.stderr:
            told = json.loads(line)
            if told["message"] == "serving gRPC":
                check(buf, f"http://{told['address']}")
                return
        sys.exit("the sidecar ended without serving")
    finally:
        sidecar.terminate()
        # Read to the end, so that it is never held up by a full pipe.
        sidecar.stderr.read()
        sidecar.wait()


def check(buf, url):
    def curl(*arguments):
        command = [buf, "curl", "--http2-prior-knowledge", "--protocol", "grpc", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def call(username):
        body = json.dumps({"user_pool_id": "eu-central-1_EXAMPLE02", "username": username})
        return curl("--data", body, f"{url}/{METHOD}")

    services = curl("--list-services", url).stdout.split()
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= set(services), services
    print("ok: lists the services")

    methods = curl("--list-methods", url).stdout.split()
    assert {METHOD, f"{SERVICE}/BulkAdminUserGlobalSignOut"} <= set(methods), methods
    print("ok: lists the methods")

    answer = call("ada")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["awsRequestId"], answer.stdout
    print("ok: signs a user out")

    failure = call("nobody")
    # buf's own exit status for NOT_FOUND.
    assert failure.returncode == 40, failure
    details = {detail["type"]: detail["value"] for detail in json.loads(failure.stderr or failure.stdout)["details"]}
    value = details["google.rpc.ErrorInfo"]
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))
    assert (info.reason, info.domain) == ("USER_NOT_FOUND", "cognito.signout.v1"), info
    assert info.metadata["outcome"] == "refused", info
    print("ok: sees the details of an error")


if __name__ == "__main__":
    main(*sys.argv[1:])
