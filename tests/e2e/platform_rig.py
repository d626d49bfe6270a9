"""A corbeld of an ordinary user's, and clients of its REST interface."""

import base64
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import threading

from harness import BUILD, LIMIT_S, ORDINARY_UID, expect, free_port
from test_cli import User


def find_hierarchies(*controls):
    """Where version 1 of control groups has these controls, and we may make groups: directories."""
    found = {}
    own = {}
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        own.update({name: path for name in names.split(",")})
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup":
            for control in set(options.split(",")) & set(controls):
                # A group that is not the hierarchy's top may be watched by who made it.
                if own.get(control) == "/" and os.access(left.split()[4], os.W_OK):
                    found[control] = pathlib.Path(left.split()[4])
    return [found[control] for control in controls] if len(found) == len(controls) else []


@contextlib.contextmanager
def delegated_groups(*controls):
    """A control group for each control, which the ordinary user may make others in: its name and
    its directories; "" and none where this host lets us make none."""
    name = f"corbel-test-{os.urandom(6).hex()}"  # numbers of processes come back
    hierarchies = find_hierarchies(*controls) if os.geteuid() == 0 else []
    folders = [hierarchy / name for hierarchy in hierarchies]
    try:
        for hierarchy, folder in zip(hierarchies, folders):
            folder.mkdir()
            for inherited in ("cpuset.cpus", "cpuset.mems"):
                if (folder / inherited).exists():
                    (folder / inherited).write_text((hierarchy / inherited).read_text())
            for path in (folder, folder / "cgroup.procs", folder / "tasks"):
                os.chown(path, ORDINARY_UID, ORDINARY_UID)
        yield (f"/{name}" if folders else ""), [str(folder) for folder in folders]
    finally:
        for folder in folders:
            # What is left of a test that failed: its machines have been ended.
            for inner in sorted(folder.glob("corbel-*/*/"), reverse=True):
                with contextlib.suppress(OSError):
                    inner.rmdir()
            for inner in [*folder.glob("corbel-*/"), folder]:
                with contextlib.suppress(OSError):
                    inner.rmdir()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=LIMIT_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(self.path)


class Platform(User):
    """The daemon, started with what a user would give it. call() is an administrator's, by the unix
    socket (the tests run as root, or as who owns it); call(token=...) comes by TCP."""

    def __init__(self, place, *arguments):
        super().__init__(place)
        prefix = place.path / "prefix"
        if not (prefix / "bin/corbeld").exists():
            shutil.copy(BUILD / "corbeld", prefix / "bin/corbeld")
        self.corbeld = prefix / "bin/corbeld"
        self.use_image("busybox")
        self.arguments = arguments
        self.port = free_port()
        self.process = None
        self.start_daemon()

    def start_daemon(self):
        command = [self.corbeld, "--listen", f"127.0.0.1:{self.port}", *self.arguments]
        self.process = subprocess.Popen(self.place.wrap(command, self.container), cwd=self.home,
                                        env=self.env, text=True, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.said = []
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()
        self.socket = str(pathlib.Path(self.home) / "corbeld/api.sock")
        while True:
            expect(self.process.poll() is None, "corbeld ended:\n" + "".join(self.said))
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/v1/version")[0] == 200:
                    return

    def _read(self, process):
        for line in process.stderr:
            self.said.append(line)

    def stop_daemon(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        status = self.process.wait(LIMIT_S)
        self.reader.join()
        expect(how == signal.SIGKILL or status == 0, f"corbeld ended with {status}:\n" +
               "".join(self.said))

    def call(self, method, path, body=None, token=None, headers=None):
        """(status, answer) of one call."""
        client = (UnixConnection(self.socket) if token is None else
                  http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S))
        headers = dict(headers or {})
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        with contextlib.closing(client):
            client.request(method, path, body, headers)
            answer = client.getresponse()
            data = answer.read()
        try:
            return answer.status, json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return answer.status, data

    def ok(self, method, path, body=None, **more):
        status, answer = self.call(method, path, body, **more)
        expect(200 <= status < 300, f"{method} {path}: {status} {answer}")
        return answer

    def refused(self, status, method, path, body=None, code=None, field=None, **more):
        got, answer = self.call(method, path, body, **more)
        expect(got == status, f"{method} {path}: {got}, not {status}: {answer}")
        error = answer["error"]
        expect(code is None or error["code"] == code, f"{method} {path}: {error}")
        expect(field is None or error.get("field") == field, f"{method} {path}: {error}")
        expect(error["message"], f"{method} {path}: {error}")
        return error

    def finish(self, answer):
        """Waits for the operation of an answer; it must have been done."""
        operation = answer["operation"]
        while operation["state"] in ("pending", "running"):
            operation = self.ok("GET", f"/v1/operations/{operation['id']}/wait")
        expect(operation["state"] == "done", f"{operation}\n" + "".join(self.said))
        return operation

    def settle(self):
        """Waits for all work that is under way."""
        for state in ("pending", "running"):
            for operation in self.ok("GET", f"/v1/operations?state={state}&limit=1000")["items"]:
                self.finish({"operation": operation})

    def launch(self, name, **more):
        """A running busybox guest."""
        answer = self.ok("POST", "/v1/instances", {"name": name, "image": "busybox",
                                                   "engine": "soft", "memory_mib": 128, **more})
        self.finish(answer)
        return answer["instance"]["id"]

    def next_change(self, revision, target):
        """Waits for a change of that object after the revision, by the event stream."""
        client = UnixConnection(self.socket)
        with contextlib.closing(client):
            client.request("GET", f"/v1/watch?since={revision}")
            answer = client.getresponse()
            expect(answer.status == 200, f"no event stream: {answer.status}")
            for line in answer:
                if line.startswith(b"data: ") and json.loads(line[6:]).get("id") == target:
                    return

    def state(self, instance):
        return self.ok("GET", f"/v1/instances/{instance}")["state"]

    def __exit__(self, *unused):
        if self.process.poll() is not None:
            self.start_daemon()
        for row in self.ok("GET", "/v1/instances?limit=1000")["items"]:
            status, answer = self.call("DELETE", f"/v1/instances/{row['id']}")
            if status == 202:
                self.finish(answer)
        self.stop_daemon()
        shutil.rmtree(self.home, ignore_errors=True)


def give_disk(platform):
    """The busybox image, with a disk that is empty."""
    path = os.path.join(platform.home, ".local/share/corbel/images/busybox/disk.raw")
    with open(path, "wb") as file:
        file.truncate(16 << 20)
    if os.geteuid() == 0:
        os.chown(path, ORDINARY_UID, ORDINARY_UID)


def cookie_of(platform, name, password):
    """The headers of a browser where the user has signed in."""
    client = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=LIMIT_S)
    with contextlib.closing(client):
        client.request("POST", "/v1/session", json.dumps({"name": name, "password": password}), {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        return {"Cookie": answer.getheader("set-cookie").split(";")[0], "X-CSRF-Token": "1",
                "Origin": f"http://127.0.0.1:{platform.port}"}


def watch_changes(platform, token=None, headers=None):
    """An event stream that has begun."""
    peer = socket.create_connection(("127.0.0.1", platform.port), timeout=LIMIT_S)
    headers = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    peer.sendall(f"GET /v1/watch?since=1 HTTP/1.1\r\nHost: 127.0.0.1:{platform.port}\r\n{lines}\r\n".encode())
    text = b""
    while b":\n\n" not in text:
        piece = peer.recv(65536)
        text += piece
        expect(piece and text.startswith(b"HTTP/1.1 200"[:len(text)]), f"{text}")
    return peer


def rest_of(peer):
    """What still comes until the server closes."""
    text = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := peer.recv(65536):
            text += piece
    peer.close()
    return text


class Socket:
    """A WebSocket of the interface (RFC 6455), for binary messages below 64 KiB."""

    def __init__(self, port, path, token=None, headers=""):
        self.peer = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        if token:
            headers += f"Authorization: Bearer {token}\r\n"
        self.peer.sendall((f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{headers}"
                           f"Upgrade: websocket\r\nConnection: Upgrade\r\n"
                           f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        self.got = b""
        while b"\r\n\r\n" not in self.got and (piece := self.peer.recv(65536)):
            self.got += piece
        self.status = int(self.got.split(b" ")[1]) if self.got else 0
        self.got = self.got.partition(b"\r\n\r\n")[2]
        self.text = b""

    def send(self, data):
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        head = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BH", 0xFE, len(data))
        self.peer.sendall(b"\x82" + head + mask + masked)

    def _take(self, count):
        while len(self.got) < count:
            piece = self.peer.recv(65536)
            expect(piece, f"the socket closed; until then: {self.text[-500:]}")
            self.got += piece
        out, self.got = self.got[:count], self.got[count:]
        return out

    def wait_text(self, text):
        """Reads until the text has come."""
        while text not in self.text:
            first, second = self._take(2)
            length = second & 0x7F
            if length == 126:
                length, = struct.unpack("!H", self._take(2))
            elif length == 127:
                length, = struct.unpack("!Q", self._take(8))
            data = self._take(length)
            expect(first & 15 != 8, f"the server closed: {self.text[-500:]}")
            self.text += data

    def close(self):
        self.peer.close()
