#!/usr/bin/python3
"""The HTTP server with curl, Python's client, WebSockets by hand, and peers that mean harm."""

import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import resource
import select
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
from harness import LIMIT_S, expect, run_tests  # noqa: E402

PROBE = os.environ["CORBEL_HTTP_PROBE"]
MAX_CONNECTIONS = 200  # as http_probe.c has it


class Probe:
    """A running http-probe."""

    def __init__(self, *tls):
        self.dir = tempfile.TemporaryDirectory(prefix="corbel-http-")
        self.unix = f"{self.dir.name}/socket"
        self.process = subprocess.Popen([PROBE, self.unix, *tls], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.port = int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        status = self.process.wait(LIMIT_S)
        self.dir.cleanup()
        expect(status == 0, f"the server ended with {status}")

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)

    def ask(self, method, path, body=None, headers=None):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        client.request(method, path, body, headers or {})
        answer = client.getresponse()
        data = answer.read()
        client.close()
        return answer, data

    def echo(self, *args, **kwargs):
        answer, data = self.ask(*args, **kwargs)
        expect(answer.status == 200, f"{args}: {answer.status} {data}")
        return json.loads(data)

    def raw(self, data):
        """All that comes back for these bytes until the server closes."""
        with self.connect() as peer:
            with contextlib.suppress(ConnectionError):
                peer.sendall(data)
            return read_to_end(peer)

    def expect_well(self):
        expect(self.echo("GET", "/well")["path"] == "/well", "a good client is not served")


def read_to_end(peer):
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := peer.recv(65536):
            got += piece
    return got


def test_requests():
    with Probe() as probe:
        said = probe.echo("GET", "/a/b%20c?x=1&y=%2F%26&z")
        expect(said["path"] == "/a/b c" and said["query"] == "[x=1][y=/&][z]", f"{said}")
        expect(said["address"] == "127.0.0.1" and not said["is_unix"], f"{said}")
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            said = probe.echo(method, "/x", b"{}" * 500,
                              {"Content-Type": "application/json", "Idempotency-Key": "k-1"})
            expect(said["method"] == method, f"{said}")
            expect(said["body_len"] == 1000, f"{method}: {said}")
            expect(said["idempotency_key"] == "k-1", f"{said}")
            expect(said["content_type"] == "application/json", f"{said}")
        answer, data = probe.ask("GET", "/x")
        expect(answer.getheader("x-probe") == "yes", "a header of the handler's")
        expect(answer.getheader("x-content-type-options") == "nosniff", f"{answer.getheaders()}")
        answer, data = probe.ask("HEAD", "/x")
        expect(answer.status == 200 and data == b"", f"HEAD: {answer.status} {data}")
        answer, data = probe.ask("GET", "/empty")
        expect(answer.status == 204 and data == b"", f"{answer.status}")
        answer, data = probe.ask("GET", "/late")
        expect(data == b"late\n", f"{data}")
        answer, data = probe.ask("GET", "/large")
        expect(data == b"x" * (3 << 20), "a large answer is cut")


def test_one_connection_many_requests():
    with Probe() as probe:
        client = http.client.HTTPConnection("127.0.0.1", probe.port, timeout=LIMIT_S)
        for i in range(200):
            client.request("POST" if i % 2 else "GET", f"/{i}", "b" * i if i % 2 else None)
            said = json.loads(client.getresponse().read())
            expect(said["path"] == f"/{i}", f"{said}")
        client.close()
        # Pipelined: the second waits until the first is answered.
        with probe.connect() as peer:
            peer.sendall(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n"
                         b"GET /two HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = read_to_end(peer)
        expect(b"late" in got and b'"/two"' in got and got.index(b"late") < got.index(b'"/two"'),
               f"pipelined: {got}")


def test_an_empty_body_is_one_request():
    with Probe() as probe:
        for _ in range(3):
            answer, data = probe.ask("POST", "/late", headers={"Content-Length": "0"})
            expect(data == b"late\n", f"{data}")
        expect(probe.echo("GET", "/x")["requests"] == 4, "a request was handled twice")


def test_unix_peer_is_known():
    with Probe() as probe:
        said = json.loads(subprocess.run(
            ["curl", "-sS", "--unix-socket", probe.unix, "http://localhost/who"], check=True,
            stdout=subprocess.PIPE).stdout)
        expect(said["is_unix"] and said["uid"] == os.getuid(), f"{said}")


def test_tls():
    with tempfile.TemporaryDirectory() as place:
        key, certificate = f"{place}/key.pem", f"{place}/cert.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", certificate,
                        "-days", "2", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True,
                       stderr=subprocess.DEVNULL)
        with Probe(certificate, key) as probe:
            out = subprocess.run(["curl", "-sS", "--cacert", certificate,
                                  f"https://localhost:{probe.port}/x"], check=True,
                                 stdout=subprocess.PIPE).stdout
            expect(json.loads(out)["is_tls"], f"{out}")
            out = subprocess.run(["curl", "-sS", "--cacert", certificate, "--data-binary",
                                  "x" * 100000, f"https://127.0.0.1:{probe.port}/x"], check=True,
                                 stdout=subprocess.PIPE).stdout
            expect(json.loads(out)["body_len"] == 100000, f"{out}")
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.load_verify_locations(certificate)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            with probe.connect() as peer:
                try:
                    old.wrap_socket(peer, server_hostname="localhost")
                    expect(False, "TLS 1.1 is taken")
                except (ssl.SSLError, ConnectionError):
                    pass
            plain = probe.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            expect(b"200 OK" not in plain, f"plain HTTP on the TLS port: {plain}")
        wrong = subprocess.run([PROBE, f"{place}/s", key, certificate], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=LIMIT_S)
        expect(wrong.returncode == 1 and b"cannot use the certificate" in wrong.stderr,
               f"{wrong}")


def test_streams():
    with Probe() as probe:
        answer, data = probe.ask("GET", "/stream")
        expect(answer.getheader("content-type") == "text/event-stream", f"{answer.getheaders()}")
        expect(data.count(b"id: ") == 100 and b"id: 99\ndata: 99\n\n" in data, f"{data[-80:]}")
        # A reader that stops reading is dropped, and the others are served meanwhile.
        with probe.connect() as peer:
            peer.sendall(b"GET /stream?flood HTTP/1.1\r\nHost: x\r\n\r\n")
            while probe.echo("GET", "/x")["gone"] < 1:
                pass
        # One that goes away is noticed.
        peer = probe.connect()
        peer.sendall(b"GET /forever HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"data: here" not in peer.recv(65536):
            pass
        peer.close()
        while probe.echo("GET", "/x")["gone"] < 2:
            pass


class WebSocket:
    """RFC 6455, as much as the test needs."""

    def __init__(self, probe, path):
        self.peer = probe.connect()
        key = base64.b64encode(os.urandom(16)).decode()
        self.peer.sendall((f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                           f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                           "Sec-WebSocket-Version: 13\r\n\r\n").encode())
        self.got = b""
        while b"\r\n\r\n" not in self.got:
            piece = self.peer.recv(65536)
            if not piece:
                break
            self.got += piece
        self.status = int(self.got.split(b" ")[1]) if self.got else 0
        self.got = self.got.partition(b"\r\n\r\n")[2]

    def send(self, data, opcode=2, is_final=True):
        mask = os.urandom(4)
        length = (struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else
                  struct.pack("!BH", 0xFE, len(data)) if len(data) < 65536 else
                  struct.pack("!BQ", 0xFF, len(data)))
        whole = mask * (len(data) // 4 + 1)
        masked = (int.from_bytes(data, "big") ^
                  int.from_bytes(whole[:len(data)], "big")).to_bytes(len(data), "big")
        self.peer.sendall(bytes([(0x80 if is_final else 0) | opcode]) + length + mask + masked)

    def take(self, count):
        while len(self.got) < count:
            piece = self.peer.recv(65536)
            if not piece:
                raise EOFError
            self.got += piece
        out, self.got = self.got[:count], self.got[count:]
        return out

    def receive(self):
        """(opcode, data) of the next frame."""
        first, second = self.take(2)
        length = second & 0x7F
        if length == 126:
            length, = struct.unpack("!H", self.take(2))
        elif length == 127:
            length, = struct.unpack("!Q", self.take(8))
        return first & 15, self.take(length)


def test_sockets():
    with Probe() as probe:
        expect(WebSocket(probe, "/elsewhere").status == 403, "a refused socket opens")
        ws = WebSocket(probe, "/socket")
        expect(ws.status == 101, f"status {ws.status}")
        for size in (0, 1, 125, 126, 5000, 65536):
            data = os.urandom(size)
            ws.send(data)
            got = ws.receive()
            expect(got == (2, data), f"{size}: {got[0]}, {len(got[1])} bytes")
        ws.send(b"in ", is_final=False)
        ws.send(b"pieces", opcode=0)
        expect(ws.receive() == (2, b"in pieces"), "a message in two frames")
        ws.send(b"end")
        expect(ws.receive()[0] == 8, "no close frame")
        # One message too long closes this socket and no other.
        other = WebSocket(probe, "/socket")
        large = WebSocket(probe, "/socket")
        with contextlib.suppress(ConnectionError):
            large.send(bytes(70000))
        with contextlib.suppress(ConnectionError, EOFError):
            while large.receive()[0] != 8:
                pass
        other.send(b"still here")
        expect(other.receive() == (2, b"still here"), "the other socket is gone")


def test_malformed():
    with Probe() as probe:
        long_path = b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        for name, data, statuses in (
                ("noise", os.urandom(4000), ()),
                ("no method", b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", (b"400", b"403",
                                                                     b"405")),
                ("long path", long_path, (b"414", b"431", b"400")),
                ("long header", b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 60000 +
                 b"\r\n\r\n", (b"431", b"400")),
                ("huge body", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
                 (b"413",)),
                ("negative body", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                 (b"400",)),
                ("chunked", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                 b"5\r\nhello\r\n0\r\n\r\n", (b"411",)),
                ("NUL in path", b"GET /a%00b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                 (b"400", b"403", b"404")),
                ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50), ()),
                ("upgrade to h2c", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, "
                 b"HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
                 b"\r\n", ())):
            got = probe.raw(data)
            expect(b"200 OK" not in got and b" 101 " not in got, f"{name} is taken: {got[:200]}")
            expect(got == b"" or not statuses or any(b" " + s + b" " in got for s in statuses),
                   f"{name}: {got[:200]}")
            probe.expect_well()
        for path in (b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"//etc/passwd"):
            got = probe.raw(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            expect(b".." not in got.partition(b"\r\n\r\n")[2], f"{path}: {got}")


def test_slow_clients():
    """Heads and bodies that come a byte at a time, or never, are given up."""
    with Probe() as probe:
        slow = [probe.connect() for _ in range(3)]
        slow[0].sendall(b"GET / HT")
        slow[1].sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        closed = set()
        while len(closed) < len(slow):
            for i, peer in enumerate(slow):
                if i in closed:
                    continue
                if select.select([peer], [], [], 0.1)[0]:
                    with contextlib.suppress(ConnectionError):
                        if peer.recv(65536):
                            continue
                    closed.add(i)
                elif i == 1:  # drips
                    with contextlib.suppress(ConnectionError):
                        peer.sendall(b"x")
            probe.expect_well()


def test_many_connections():
    """Ten times as many connections as the server keeps: a good client is served all the while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10 * MAX_CONNECTIONS, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    with Probe() as probe:
        idle = []
        for i in range(count):
            idle.append(probe.connect())
            if i % 100 == 0:
                probe.expect_well()
        probe.expect_well()
        fds = len(os.listdir(f"/proc/{probe.process.pid}/fd"))
        expect(fds < MAX_CONNECTIONS + 100, f"{fds} descriptors")
        # All busy with bodies that do not end: the next one still gets in.
        for peer in idle[-MAX_CONNECTIONS:]:
            with contextlib.suppress(ConnectionError):
                peer.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx")
        probe.expect_well()
        for peer in idle:
            peer.close()
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            for said in pool.map(lambda i: probe.echo("POST", f"/{i}", "x" * 1000), range(1000)):
                expect(said["body_len"] == 1000, f"{said}")


def test_no_descriptors_left():
    """A server without descriptors sends peers away and serves again when there are some."""
    with Probe() as probe:
        used = len(os.listdir(f"/proc/{probe.process.pid}/fd"))
        resource.prlimit(probe.process.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
        peers = [probe.connect() for _ in range(40)]
        for _ in range(2):
            is_answered = False
            while not is_answered:
                with contextlib.suppress(ConnectionError, http.client.HTTPException):
                    probe.expect_well()
                    is_answered = True
            for peer in peers:
                peer.close()


if __name__ == "__main__":
    run_tests([(name[5:].replace("_", " "), lambda _, function=function: function())
               for name, function in list(globals().items()) if name.startswith("test_")])
