"""A Cognito on loopback that knows everybody but `nobody`, for what tries the binary of the image without the embedded one.
It is an STS too, which lets everybody assume any role.

`cognito.py CERTIFICATE KEY` serves it under TLS, and prints its port.
"""

import http.server
import json
import ssl
import sys

ASSUMED = b"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAASSUMEDASSUMED00</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
<SessionToken>token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""

class Cognito(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/x-www-form-urlencoded":
            self.answer(200, "text/xml", ASSUMED)
        elif json.loads(asked)["Username"] != "nobody":
            self.answer(200, "application/x-amz-json-1.1", b"{}")
        else:
            failure = b'{"__type":"UserNotFoundException","message":"User does not exist."}'
            self.answer(400, "application/x-amz-json-1.1", failure)

    def answer(self, status, content_type, answer):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("x-amzn-RequestId", "00000000-0000-4000-8000-000000000000")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


def server(context=None):
    """A server at a free port; under TLS if there is a context for it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cognito)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[1:3])
    server = server(context)
    print(server.server_port, flush=True)
    server.serve_forever()
