"""Walks the table of cases: walk.py CASES TARGETS. Speaks with clients/run by lines on standard input and output."""

import json
import sys
import time

import grpc

from sign_out import SignOutClient, SignOutFailed

LANGUAGE = "python"


class Walk:
    """One case. Clients outlive it, because a connection that survives is what some cases are about."""

    clients = {}

    def __init__(self, table, targets):
        self.defaults = table["defaults"]
        self.targets = targets
        self.call = None
        self.watch = None

    def run(self, case):
        ask(f"begin {case['name']}")
        for step in case["steps"]:
            getattr(self, f"do_{step['do']}")(self.defaults | step)

    def client(self, step):
        name = step["over"]
        if step.get("fresh") or name not in self.clients:
            target = dict(self.targets[name])
            addresses = target.pop("addresses")
            address = addresses[0] if len(addresses) == 1 else "ipv4:" + ",".join(addresses)
            self.clients[name] = SignOutClient(address, **target)
        return self.clients[name]

    def do_ask(self, step):
        ask(step["what"])

    def do_call(self, step):
        client = self.client(step)
        self.timed(step, lambda timeout: client.attempt(step["pool"], step["user"], timeout, step.get("traceparent")))

    def do_sign_out(self, step):
        client = self.client(step)
        self.timed(step, lambda timeout: client.sign_out(step["pool"], step["user"], timeout))

    def timed(self, step, call):
        began = time.monotonic()
        try:
            actual = seen(call(step["deadline_ms"] / 1000))
        except SignOutFailed as failure:
            actual = seen(failure)
        took = (time.monotonic() - began) * 1000
        check(step, actual)
        if not step.get("at_least_ms", 0) <= took <= step.get("at_most_ms", took):
            raise AssertionError(f"it took {took:.0f} ms")

    def do_start(self, step):
        client = self.client(step)
        self.call = client.start(step["pool"], step["user"], step["deadline_ms"] / 1000, None, step.get("wait_for_ready"))

    def do_cancel(self, step):
        self.call.cancel()
        check(step, {"code": self.call.code().name})

    def do_finish(self, step):
        check(step, seen(self.call.result()))

    def do_watch(self, step):
        self.watch = self.client(step).watch_health(step["service"])

    def do_seen(self, step):
        status = next(self.watch)
        if status != step["status"]:
            raise AssertionError(f"health is {status}, not {step['status']}")

    def do_ended(self, step):
        try:
            others = [status for status in self.watch if status != step["status"]]
        except grpc.RpcError:
            return
        if others:
            raise AssertionError(f"the watch went on with {others}")

    def do_gather(self, step):
        client = self.client(step)
        deadline = time.monotonic() + 10
        answered_by = ""
        while answered_by != step["answered_by"]:
            if time.monotonic() > deadline:
                raise AssertionError(f"answered by {answered_by}")
            answers = [client.attempt(step["pool"], step["user"], 5) for _ in range(step["times"])]
            answered_by = ",".join(sorted({answer.aws_request_id for answer in answers}))


def seen(answer):
    """What the table compares, as text."""
    if not isinstance(answer, SignOutFailed):
        return {
            "code": "OK",
            "request_id": text(answer.aws_request_id != ""),
            "signed_out_at": text(answer.HasField("signed_out_at")),
        }
    return {
        "code": answer.code.name,
        "reason": answer.reason,
        "fault": answer.fault,
        "retryable": text(answer.retryable),
        "outcome": answer.outcome,
        "aws_error_code": answer.metadata.get("aws_error_code", ""),
        "retry_after": text(answer.retry_after is not None),
        "request_id": text(answer.request_id != ""),
        "fields": ",".join(answer.fields),
        "does": answer.does,
    }


def text(truth):
    return "true" if truth else "false"


def check(step, actual):
    wrong = [f"{key} is {actual.get(key)!r}, not {value!r}" for key, value in step["expect"].items() if actual.get(key) != value]
    if wrong:
        raise AssertionError("; ".join(wrong))


def ask(what):
    print("ask", what, flush=True)
    reply = sys.stdin.readline().strip()
    if reply != "done":
        raise AssertionError(f"{what}: {reply}")


def main():
    with open(sys.argv[1]) as cases, open(sys.argv[2]) as targets:
        table, targets = json.load(cases), json.load(targets)
    for case in table["cases"]:
        if LANGUAGE not in case.get("in", [LANGUAGE]):
            continue
        try:
            Walk(table, targets).run(case)
            print("pass", case["name"], flush=True)
        except Exception as error:  # any exception is a failed case, and the next one goes on
            print("fail", case["name"], "::", " ".join(f"{type(error).__name__}: {error}".split()), flush=True)


main()
