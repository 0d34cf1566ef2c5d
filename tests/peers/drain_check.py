"""Two replicas under load, one of which is stopped: a client with our service config sees no error at all.

Usage: drain_check.py BINARY, with the stubs generated from proto/ on PYTHONPATH (tests/peers/run sees to both).
The client retries by nothing but clients/service_config.json. There is no --drain-delay, and most calls wait for their turn
(--max-in-flight 2), so that a stop meets calls that it has to turn away.
"""

import contextlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import grpc

from cognito.signout.v1 import sign_out_pb2, sign_out_pb2_grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALLERS = 16
ENOUGH = 400  # answers before the stop, and after it


def main():
    binary = sys.argv[1]
    with cognito() as url, replica(binary, url, "leaving") as leaving, replica(binary, url, "staying") as staying:
        config = (ROOT / "clients/service_config.json").read_text()
        options = [("grpc.service_config", config), ("grpc.default_authority", "localhost")]
        addresses = ",".join(address for _, address in (leaving, staying))
        with grpc.insecure_channel(f"ipv4:{addresses}", options) as channel:
            load = Load(sign_out_pb2_grpc.SignOutServiceStub(channel))
            load.goes_on(ENOUGH)
            process, _ = leaving
            process.terminate()
            assert process.wait(30) == 0, f"exit status {process.returncode}"
            load.goes_on(ENOUGH)
            load.end()
    assert not load.errors, f"{len(load.errors)} errors, the first: {load.errors[0]}"
    left = load.answered_by.count("leaving")
    assert left, "the replica that left was never asked"
    print(f"  {load.answers} calls, {left} of them answered by the replica that left, and no error")
    print("drain_check: all as told")


class Load:
    """Callers that call without a pause."""

    def __init__(self, stub):
        self.stub, self.answers, self.errors, self.done = stub, 0, [], False
        self.answered_by = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.call, args=(n,), daemon=True) for n in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def call(self, caller):
        n = 0
        while not self.done:
            n += 1
            request = sign_out_pb2.AdminUserGlobalSignOutRequest(user_pool_id="eu-central-1_EXAMPLE02", username=f"user{caller}-{n}")
            try:
                self.answered_by.append(self.stub.AdminUserGlobalSignOut(request, timeout=20).aws_request_id)
            except grpc.RpcError as error:
                self.errors.append(error)
            with self.lock:
                self.answers += 1

    def goes_on(self, answers):
        enough, limit = self.answers + answers, time.monotonic() + 60
        while self.answers < enough:
            assert time.monotonic() < limit, f"{self.answers} answers, and no more come"
            time.sleep(0.01)

    def end(self):
        self.done = True
        for thread in self.threads:
            thread.join()


@contextlib.contextmanager
def cognito():
    """Signs everybody out, in 10 ms; the request id is the path that it is called at, so that it tells the replica."""

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            time.sleep(0.01)
            self.send_response(200)
            self.send_header("content-type", "application/x-amz-json-1.1")
            self.send_header("x-amzn-requestid", self.path.strip("/"))
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextlib.contextmanager
def replica(binary, url, name):
    """A process and its address."""
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": f"{url}/{name}",
        "COGNITO_SIGNOUT_LOG_FORMAT": "json",
        "HOME": os.devnull,
    }
    command = [binary, "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--max-in-flight=2"]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = None
        while not address:
            line = process.stderr.readline()
            assert line, "the sidecar ended before it served"
            event = json.loads(line)
            address = event["address"] if event["message"] == "serving gRPC" else None
        # Read and forgotten, so that the pipe never fills.
        threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
        yield process, address
    finally:
        process.kill()
        process.wait()


main()
