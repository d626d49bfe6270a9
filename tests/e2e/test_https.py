#!/usr/bin/python3
"""Images over HTTPS from a real TLS server with certificates of a test authority: the right one and
all the wrong ones, redirects to and from HTTP, resumption, and lies about the length."""

import atexit
import contextlib
import hashlib
import http.server
import os
import pathlib
import random
import shutil
import ssl
import subprocess
import tempfile
import threading

from harness import expect, run_tests
from test_cli import User
from test_image_get import expect_disk

DISK = random.Random(4).randbytes(1 << 20)
SUM = "sha256:" + hashlib.sha256(DISK).hexdigest()


class Authority:
    """A certificate authority of the test's own, made by openssl."""

    def __init__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="corbel-ca-"))
        self.dir.chmod(0o755)
        atexit.register(shutil.rmtree, self.dir, ignore_errors=True)
        self.sign_self("ca")
        self.sign_self("stranger")
        self.file = self.dir / "ca.pem"

    def openssl(self, *words):
        subprocess.run(["openssl", *map(str, words)], check=True, cwd=self.dir,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def sign_self(self, name):
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                     "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN=test {name}",
                     "-days", "2")

    def sign(self, name, alt, by="ca", begin=None, end=None):
        """A server's certificate and key in one file."""
        (self.dir / f"{name}.ext").write_text(f"subjectAltName={alt}\n")
        self.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                     "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        if begin is None:
            self.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{by}.pem", "-CAkey",
                         f"{by}.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext",
                         "-out", f"{name}.crt")
        else:
            (self.dir / "ca.cnf").write_text(
                "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\n"
                "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n")
            (self.dir / "index").write_text("")
            (self.dir / "serial").write_text("77\n")
            self.openssl("ca", "-batch", "-config", "ca.cnf", "-cert", f"{by}.pem", "-keyfile",
                         f"{by}.key", "-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile",
                         f"{name}.ext", "-startdate", begin, "-enddate", end, "-notext")
        both = self.dir / f"{name}.both"
        both.write_bytes((self.dir / f"{name}.crt").read_bytes() +
                         (self.dir / f"{name}.key").read_bytes())
        return both


class Server:
    def __init__(self, certificate=None):
        owner = self
        self.asked = []  # (path, first byte)
        self.goal = ""   # of /redirect
        self.cuts = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):  # noqa: N802
                with contextlib.suppress(OSError):
                    owner.answer(self)

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # clients that refuse a certificate hang up

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake is the connection's thread's, so that none holds up the others.
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True,
                                                   do_handshake_on_connect=False)
            self.scheme = "https"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def url(self, path, host="localhost"):
        return f"{self.scheme}://{host}:{self.http.server_port}/{path}"

    def answer(self, request):
        path = request.path.lstrip("/")
        first = int(request.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.asked.append((path, first))
        if path.startswith("redirect"):
            request.send_response(302)
            request.send_header("Location", self.goal)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        length = len(DISK) - first
        body = DISK[first:]
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(DISK) - 1}/{len(DISK)}")
        if path.startswith("more"):
            length += 4096  # it never sends so much
        if path.startswith("less"):
            length //= 2    # and goes on beyond it
        request.send_header("Content-Length", str(length))
        request.end_headers()
        if self.cuts > 0:
            self.cuts -= 1
            body = body[:len(body) // 2]
        request.wfile.write(body)
        request.close_connection = True

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def fetch(user, url, *words, status=0, name=None):
    name = name or f"n{len(os.listdir(user.home))}-{abs(hash(url))}"
    return user.run("image", "fetch", url, "--checksum", SUM, "--name", name, *words, status=status)


AUTHORITY = None


def trust():
    """What makes a command trust the test's authority, and no other."""
    return {"SSL_CERT_FILE": str(AUTHORITY.file)}


def judge_certificates(place):
    good = AUTHORITY.sign("good", "DNS:localhost")
    with User(place) as user:
        user.env.update(trust())
        with Server(good) as server:
            fetch(user, server.url("disk.raw"), name="good")
            expect_disk(user, "good", DISK)
            # The same server by a name that is not in its certificate.
            before = len(server.asked)
            user.run("image", "prune")
            _, err = fetch(user, server.url("disk.raw", "127.0.0.1"), status=1)
            expect("127.0.0.1" in err and "match" in err.lower(), err)
            expect(len(server.asked) == before, "a wrong name was asked for the file")
        wrong = {
            "expired": AUTHORITY.sign("old", "DNS:localhost", begin="20200101000000Z",
                                      end="20210101000000Z"),
            "self": AUTHORITY.sign("alien", "DNS:localhost", by="stranger"),
        }
        for word, certificate in wrong.items():
            with Server(certificate) as server:
                _, err = fetch(user, server.url("disk.raw"), status=1)
                expect(("expired" if word == "expired" else "certificate") in err, err)
                expect(server.asked == [], f"{word}: a server that is not trusted was asked")
        del user.env["SSL_CERT_FILE"]
        with Server(good) as server:
            _, err = fetch(user, server.url("disk.raw"), status=1)
            expect("certificate" in err, err)


def follow_redirects_one_way(place):
    good = AUTHORITY.sign("good", "DNS:localhost")
    with User(place) as user, Server(good) as secure, Server() as plain:
        user.env.update(trust())
        plain.goal = secure.url("disk.raw")
        fetch(user, plain.url("redirect.raw"), name="up")
        expect_disk(user, "up", DISK)
        user.run("image", "prune")
        secure.goal = plain.url("disk.raw")
        asked = len(plain.asked)
        _, err = fetch(user, secure.url("redirect.raw"), status=2)
        expect("http" in err, err)
        expect(len(plain.asked) == asked, "the way went from HTTPS to HTTP")


def go_on_and_see_through_lies(place):
    good = AUTHORITY.sign("good", "DNS:localhost")
    with User(place) as user, Server(good) as server:
        user.env.update(trust())
        server.cuts = 3
        fetch(user, server.url("cut.raw"), name="cut")
        expect_disk(user, "cut", DISK)
        firsts = [first for path, first in server.asked if path == "cut.raw"]
        expect(len(set(firsts)) == 4 and firsts == sorted(firsts), f"not resumed: {firsts}")
        user.run("image", "prune")
        # It announces more than it ever sends, or sends more than it announces.
        _, err = fetch(user, server.url("more.raw"), status=1)
        expect("remaining" in err, err)
        user.run("image", "prune")
        _, err = fetch(user, server.url("less.raw"), status=1)
        expect("checksum" in err, err)
        expect(user.images() == ["cut"], f"an image of lies: {user.images()}")


TESTS = [
    ("only certificates of a trusted authority, for this name and time, will do", judge_certificates),
    ("redirects lead to HTTPS and never away from it", follow_redirects_one_way),
    ("a fetch goes on, and lies about lengths do not pass", go_on_and_see_through_lies),
]

if __name__ == "__main__":
    AUTHORITY = Authority()
    run_tests(TESTS)
