"""The stage on which every client walks the table: sidecars, the embedded Cognito, a scripted one, certificates.

All of it is real but Cognito: the binary under test runs as it would in production, once for each situation that a case
needs. The scripted Cognito stands in only for what the embedded one does not show (a captive portal, a skewed clock, a
count of attempts). Everything listens on loopback and ends with the stage.
"""

import http.server
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import threading
import time

PATIENCE = 20  # seconds that anything may take before the stage calls it a failure
TOKEN = "a-token-that-only-the-tests-know"
GUARDED_POOL = "us-east-1_EXAMPLE01"


class StageError(Exception):
    """What was asked for did not come about."""


class Process:
    """A child whose output is read as it comes, so that anybody can wait for a line of it."""

    def __init__(self, args, env, log):
        self.lines = []
        self.said = threading.Condition()
        self.log = log
        self.child = subprocess.Popen(args, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        with self.child.stdout, open(self.log, "ab") as log:
            for raw in self.child.stdout:
                log.write(raw)
                log.flush()
                with self.said:
                    self.lines.append(raw.decode(errors="replace").rstrip("\n"))
                    self.said.notify_all()
        with self.said:
            self.lines.append(None)  # the end
            self.said.notify_all()

    def wait_for(self, wanted, start=0):
        """The first line from `start` on for which `wanted` is true."""
        deadline = time.monotonic() + PATIENCE
        at = start
        with self.said:
            while True:
                for line in self.lines[at:]:
                    if line is None:
                        raise StageError(f"{self.log.name}: the process ended: {' | '.join(l for l in self.lines[-4:] if l)}")
                    if wanted(line):
                        return line
                at = len(self.lines)
                if not self.said.wait(max(0, deadline - time.monotonic())):
                    raise StageError(f"{self.log.name}: waited {PATIENCE} s for a line that did not come")

    def running(self):
        return self.child.poll() is None

    def stop(self, by):
        if self.running():
            self.child.send_signal(by)
        self.ended()

    def ended(self):
        try:
            self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Scripted(http.server.ThreadingHTTPServer):
    """A Cognito that does what the username says, counts what arrives, and tells who has hung up.

    A first segment of the path, if there is one, is the request id of its answers: so a caller sees which replica asked.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.changed = threading.Condition()
        self.counts = {}
        self.departed = set()
        self.released = False
        self.keys = 0
        self.on_stop_me = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # peers that hang up are what some cases are about

    def wait(self, condition, what):
        with self.changed:
            if not self.changed.wait_for(condition, PATIENCE):
                raise StageError(f"waited {PATIENCE} s in vain for {what}; seen so far: {self.counts}")


class ScriptedHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=(), content_type="application/x-amz-json-1.1"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amzn-requestid", self.path.strip("/") or "scripted")
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def fault(self, status, code, headers=()):
        self.answer(status, {"__type": code, "message": "as scripted"}, headers)

    def do_GET(self):
        """A container's credential endpoint: new keys at every call, or none ever."""
        if self.path != "/credentials/rotating":
            self.answer(500, {"message": "as scripted"})
            return
        with self.server.changed:
            self.server.keys += 1
            key = f"AKIDROTATING{self.server.keys:08}"
        hour = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        self.answer(200, {"AccessKeyId": key, "SecretAccessKey": "scripted", "Token": "scripted", "Expiration": hour})

    def do_POST(self):
        server = self.server
        user = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["Username"]
        with server.changed:
            seen = server.counts[user] = server.counts.get(user, 0) + 1
            server.changed.notify_all()
        kind, *rest = user.split("-")
        if kind in ("throttled", "unavailable") and rest:  # KIND-HOWMANY-wait-HOWLONG
            if seen > int(rest[0]):
                self.answer(200, {})
                return
            wait = [("x-amz-retry-after", rest[2].removesuffix("ms"))]
            if kind == "throttled":
                self.fault(400, "TooManyRequestsException", wait)
            else:
                self.answer(503, b"<html>as scripted</html>", wait, "text/html")
        elif user == "clock-skewed":
            self.fault(400, "RequestExpired")
        elif user == "captive-portal":
            self.answer(200, b"<html>please log in</html>", content_type="text/html")
        elif user == "nobody":
            self.fault(400, "UserNotFoundException")
        elif user in ("held", "occupant"):
            self.hold(user)
        elif user == "stop-me":
            if seen == 1 and server.on_stop_me:
                server.on_stop_me()
            self.fault(400, "TooManyRequestsException", [("x-amz-retry-after", "300")])
        else:
            self.answer(200, {})

    def hold(self, user):
        """No answer until the peer hangs up or the stage lets go."""
        self.close_connection = True
        self.connection.settimeout(0.05)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not self.server.released:
            try:
                if self.connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        with self.server.changed:
            self.server.departed.add(user)
            self.server.changed.notify_all()
        if self.server.released:
            self.answer(200, {})


class Certificates:
    """A CA, a server certificate for 127.0.0.1 and a client certificate, by the openssl command."""

    def __init__(self, folder):
        self.folder = folder
        self.generation = 0
        folder.mkdir(parents=True)
        self.make(folder)

    def make(self, folder):
        def openssl(*args):
            done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise StageError(f"openssl {args[0]}: {done.stderr.strip()}")

        def key(name):
            openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", folder / f"{name}.key")

        self.generation += 1
        key("ca")
        openssl("req", "-x509", "-key", folder / "ca.key", "-out", folder / "ca.pem", "-days", "2", "-subj",
                f"/CN=clients CA {self.generation}", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        for name, usage, names in [
            ("server", "serverAuth", "IP:127.0.0.1,DNS:localhost"),
            ("client", "clientAuth", "URI:spiffe://example.org/session-service,DNS:session-service.example.org"),
        ]:
            key(name)
            openssl("req", "-new", "-key", folder / f"{name}.key", "-out", folder / f"{name}.csr", "-subj", f"/CN={name}")
            extensions = folder / f"{name}.ext"
            extensions.write_text(
                f"subjectAltName={names}\nextendedKeyUsage={usage}\nkeyUsage=critical,digitalSignature\n"
                "basicConstraints=critical,CA:FALSE\n"
            )
            openssl("x509", "-req", "-in", folder / f"{name}.csr", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
                    "-set_serial", f"{self.generation}", "-days", "2", "-extfile", extensions, "-out", folder / f"{name}.pem")

    def rotate(self):
        """Everything anew, the CA as well; each file is replaced as a whole."""
        fresh = self.folder.with_name(f"{self.folder.name}-{self.generation + 1}")
        fresh.mkdir()
        self.make(fresh)
        for file in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"):
            os.replace(fresh / file, self.folder / file)


class Stage:
    """Everything that the table needs, at work until it is closed."""

    def __init__(self, binary, folder, emulator=None):
        self.binary = str(binary)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "COGNITO_SIGNOUT_", "OTEL_"))
        } | {"NO_PROXY": "127.0.0.1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
             "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
        self.processes = {}
        self.sidecars = {}
        self.missing = {}
        self.addresses = {}
        self.scripted = Scripted()
        self.scripted.on_stop_me = self.stop_the_stopping
        self.emulator = Process([str(emulator or binary), "emulate", "--listen", "127.0.0.1:0"], self.environment, folder / "emulator.log")
        self.emulator_url = "http://" + self.emulator.wait_for(lambda line: "http://" in line).split("http://")[1].split()[0]
        self.describe()
        for name in self.sidecars:
            self.spawn(name)
        for name in self.sidecars:
            try:
                self.announced(name)
            except StageError as error:
                self.missing[name] = error

    def describe(self):
        """What is run: the flags and the surroundings of each sidecar, and the targets that clients dial."""
        folder = self.folder
        certificates = folder / "certificates"
        self.certificates = Certificates(certificates)
        stale = folder / "stale.pem"
        stale.write_bytes((certificates / "ca.pem").read_bytes())
        for name in ("client.pem", "client.key"):
            (folder / f"stale-{name}").write_bytes((certificates / name).read_bytes())
        token = folder / "token"
        token.write_text(TOKEN + "\n")
        policy = folder / "policy.toml"
        policy.write_text(
            f'[[callers]]\nname = "session-service"\ntoken_files = ["{token}"]\npools = ["{GUARDED_POOL}"]\n'
        )
        self.unix = folder / "main.sock"

        keys = {"AWS_ACCESS_KEY_ID": "AKIDCLIENTS", "AWS_SECRET_ACCESS_KEY": "clients"}
        embedded = keys | {"AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": self.emulator_url}
        scripted = keys | {"AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": self.scripted.url}
        no_keys = {"AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": self.emulator_url}

        def container(path):
            return no_keys | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.scripted.url}/credentials/{path}"}

        def replica(name):
            return keys | {"AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": f"{self.scripted.url}/{name}"}

        # The clients' own retries are on show, so the sidecar makes one attempt.
        self.sidecars = {
            "main": (embedded, ["--listen", f"unix:{self.unix}", "--attempt-timeout", "30s"]),
            "scripted": (scripted, ["--attempt-timeout", "30s"]),
            "guarded": (embedded, ["--tls-cert", f"{certificates}/server.pem", "--tls-key", f"{certificates}/server.key",
                                   "--tls-client-ca", f"{certificates}/ca.pem", "--policy", str(policy),
                                   "--reload-interval", "500ms"]),
            "narrow": (scripted, ["--max-in-flight", "1", "--max-waiting", "0", "--attempt-timeout", "30s"]),
            "stopping": (scripted, ["--max-attempts", "3"]),
            "quota": (scripted, ["--quota-rps", "0.1"]),
            "unaudited": (embedded, ["--audit", "/dev/full", "--audit-on-failure", "closed"]),
            "no-credentials": (no_keys, []),
            "rotating-credentials": (container("rotating"), []),
            "failing-credentials": (container("failing"), []),
            "misconfigured": (keys | {"AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": "not a URL"}, []),
            "replica-a": (replica("replica-a"), ["--drain-delay", "15s"]),
            "replica-b": (replica("replica-b"), []),
        }

    def spawn(self, name):
        environment, flags = self.sidecars[name]
        once = [] if "--max-attempts" in flags else ["--max-attempts", "1"]
        # A sidecar that is started again keeps its port.
        listen = self.addresses.get(name, "127.0.0.1:0")
        args = [self.binary, "serve", "--listen", listen, *flags, *once, "--admin-listen", "127.0.0.1:0", "--log-format", "json",
                "--drain-timeout", "16s"]
        self.processes[name] = Process(args, self.environment | environment, self.folder / f"{name}.log")

    def announced(self, name):
        line = self.processes[name].wait_for(lambda line: "serving gRPC" in line and "127.0.0.1" in line)
        fields = json.loads(line)
        self.addresses[name] = fields.get("address") or fields["fields"]["address"]
        self.processes[name].wait_for(lambda line: "serving probes" in line)

    def targets(self):
        """What a walker gets: where each target is, and what it takes to dial it."""
        def nowhere(name):
            return self.addresses.get(name, "127.0.0.1:1")

        certificates = self.certificates.folder
        tls = {"ca": f"{certificates}/ca.pem", "cert": f"{certificates}/client.pem", "key": f"{certificates}/client.key"}
        token = {"token_file": str(self.folder / "token")}
        targets = {name: {"addresses": [nowhere(name)]} for name in self.sidecars}
        targets["main-unix"] = {"addresses": [f"unix:{self.unix}"]}
        targets["guarded"] |= tls | token
        targets["guarded-no-token"] = {"addresses": [nowhere("guarded")]} | tls
        targets["guarded-stale"] = {"addresses": [nowhere("guarded")], "ca": str(self.folder / "stale.pem"),
                                    "cert": str(self.folder / "stale-client.pem"),
                                    "key": str(self.folder / "stale-client.key")} | token
        config = {"service_config": str(pathlib.Path(__file__).with_name("service_config.json"))}
        targets["main-config"] = {"addresses": [nowhere("main")]} | config
        targets["scripted-config"] = {"addresses": [nowhere("scripted")]} | config
        targets["replicas"] = {"addresses": [nowhere("replica-a"), nowhere("replica-b")]} | config
        return targets

    def begin(self, needs):
        """Before a case: what it needs is there, whatever the case before has left behind."""
        for name in needs:
            if name in self.missing:
                raise StageError(f"this binary cannot serve it: {self.missing[name]}")
            if name in self.processes and not self.processes[name].running():
                self.spawn(name)
                self.announced(name)

    def ask(self, words):
        """What a walker asks for; it is done when this returns."""
        verb, *rest = words.split()
        getattr(self, f"ask_{verb}")(*rest)

    def ask_stop(self, name):
        process = self.processes[name]
        process.child.send_signal(signal.SIGTERM)
        process.ended()  # a second signal would cut short what the first one lets finish

    def ask_start(self, name):
        self.spawn(name)
        self.announced(name)

    def ask_drain(self, name):
        process = self.processes[name]
        process.child.send_signal(signal.SIGTERM)
        process.wait_for(lambda line: "stopping" in line)

    def ask_count(self, user, count):
        seen = self.scripted.counts.get(user, 0)
        if seen != int(count):
            raise StageError(f"Cognito saw {seen} attempts for {user}, not {count}")

    def ask_arrived(self, user):
        self.scripted.wait(lambda: self.scripted.counts.get(user), f"{user} to arrive")

    def ask_departed(self, user):
        self.scripted.wait(lambda: user in self.scripted.departed, f"the sidecar to drop {user}")

    def ask_occupy(self, name):
        self.scripted.counts.pop("occupant", None)
        self.scripted.released = False
        self.occupant = self.command(name, "occupant")
        self.ask_arrived("occupant")

    def ask_release(self):
        self.scripted.released = True
        if self.occupant.wait(PATIENCE):
            raise StageError(f"the call that occupied the sidecar failed: exit status {self.occupant.returncode}")
        self.scripted.released = False

    def ask_spend(self, name):
        """One call, well or not: it uses up what there is."""
        self.command(name, "spender").wait(PATIENCE)

    def ask_rotate(self):
        self.certificates.rotate()
        host, port = self.addresses["guarded"].split(":")
        folder = self.certificates.folder
        deadline = time.monotonic() + PATIENCE
        while True:
            # Only the new server certificate is signed by the new CA.
            context = ssl.create_default_context(cafile=folder / "ca.pem")
            context.load_cert_chain(folder / "client.pem", folder / "client.key")
            try:
                with socket.create_connection((host, int(port)), 5) as raw, context.wrap_socket(raw, server_hostname=host):
                    return
            except (OSError, ssl.SSLError) as error:
                if time.monotonic() > deadline:
                    raise StageError(f"the new certificates are not served after {PATIENCE} s: {error}") from error
            time.sleep(0.1)

    def ask_logged(self, name, text):
        self.processes[name].wait_for(lambda line: text in line)

    def stop_the_stopping(self):
        """While Cognito ponders, the sidecar is told to stop: its next attempt is one too many."""
        process = self.processes["stopping"]
        process.child.send_signal(signal.SIGTERM)
        process.wait_for(lambda line: "stopping" in line)

    def command(self, name, user):
        return subprocess.Popen(
            [self.binary, "sign-out", "--address", self.addresses[name], "--user-pool-id", GUARDED_POOL, "--username", user,
             "--timeout", "20s"],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self):
        for process in self.processes.values():
            process.stop(signal.SIGKILL)
        self.emulator.stop(signal.SIGKILL)
        self.scripted.shutdown()
        self.scripted.server_close()
