"""probe.py grpc|sdk ADDRESS STARTED CALLS: signs a user out, by our client or by boto3, and prints what it took."""

import json
import resource
import sys
import time

way, address, started, calls = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
if way == "grpc":
    from sign_out import SignOutClient

    client = SignOutClient(address)

    def sign_out():
        client.sign_out("us-east-1_EXAMPLE01", "ada")
else:
    import boto3

    client = boto3.client("cognito-idp", endpoint_url=address, region_name="us-east-1")

    def sign_out():
        client.admin_user_global_sign_out(UserPoolId="us-east-1_EXAMPLE01", Username="ada")


sign_out()
first = time.time() - started
for _ in range(100):
    sign_out()
before = resource.getrusage(resource.RUSAGE_SELF)
took = []
for _ in range(calls):
    began = time.perf_counter()
    sign_out()
    took.append(time.perf_counter() - began)
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({
    "first_ms": first * 1e3, "cpu_us": cpu / calls * 1e6, "p50_us": sorted(took)[calls // 2] * 1e6, "rss_mb": after.ru_maxrss / 1024,
}))
