"""A name server for deploy/image/test: `names.py QUERIES ADDRESS`, on port 53 of a loopback address.

It knows *.names.test, which is 127.0.0.1, and says of every other name that it does not exist, as a cluster's does of the
search domains. For long.names.test a datagram is not enough: the answer is cut, and whole only by TCP. Each question for
an address is a line in QUERIES, once.
"""

import socketserver
import struct
import sys

seen = set()


def note(line):
    if line not in seen:
        seen.add(line)
        with open(sys.argv[1], "a", encoding="ascii") as file:
            file.write(line + "\n")


def answer(query, by_tcp):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii").lower())
        at += 1 + query[at]
    name = ".".join(labels)
    question = query[12 : at + 5]
    (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
    note(f"tcp {name}" if by_tcp else name)
    known = name.endswith(".names.test") and len(labels) == 3
    cut = known and labels[0] == "long" and not by_tcp
    addresses = 0
    if known and kind == 1 and not cut:
        addresses = 60 if labels[0] == "long" else 1
    # Answer, authoritative, recursion desired and available; "no such name" is 3.
    flags = 0x8580 | (0x0200 if cut else 0) | (0 if known else 3)
    record = struct.pack(">HHHIH4s", 0xC00C, 1, 1, 5, 4, bytes([127, 0, 0, 1]))
    return query[:2] + struct.pack(">HHHHH", flags, 1, addresses, 0, 0) + question + record * addresses


class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        query, socket = self.request
        socket.sendto(answer(query, False), self.client_address)


class Tcp(socketserver.StreamRequestHandler):
    def handle(self):
        while length := self.rfile.read(2):
            reply = answer(self.rfile.read(struct.unpack(">H", length)[0]), True)
            self.wfile.write(struct.pack(">H", len(reply)) + reply)


if __name__ == "__main__":
    import threading

    where = (sys.argv[2], 53)
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    threading.Thread(target=socketserver.ThreadingTCPServer(where, Tcp).serve_forever, daemon=True).start()
    server = socketserver.ThreadingUDPServer(where, Udp)
    print("serving", flush=True)
    server.serve_forever()
