#!/usr/bin/python3
"""corbeld and what is below it, with real machines: killed at every step, restarted, found again.

usage: test_platform.py [--full]    (--full: as `make test-platform` runs it)
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

from harness import BUILD, LIMIT_S, Workplace, expect, guest, run_tests
from platform_rig import delegated_groups

FULL = "--full" in sys.argv[1:]
AT_ONCE = 3
ENGINE = os.environ.get("CORBEL_ENGINE", "soft")
IMAGE_JSON = {"kind": "busybox", "kernel": "test", "cmdline": "console=ttyS0 quiet",
              "ready": "corbel-busybox: ready", "memory_mib": 128}


class Client(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=LIMIT_S)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Daemon:
    """corbeld as an ordinary user runs it, with a home of its own."""

    def __init__(self, place):
        self.place = place
        # Unix sockets take 107 characters, so the directory must be near the root.
        self.home = pathlib.Path(place.own(tempfile.mkdtemp(prefix="cplat-", dir="/tmp")))
        self.program = place.path / "corbeld"
        if not self.program.exists():
            place._copy(BUILD / "corbeld")
        self.socket = self.home / "run/api.sock"
        self.arguments = ["--state", self.home / "state", "--runtime", self.home / "run",
                          "--images", self.home / "images", "--vmm", place.vmm]
        self.process = None
        image = self.home / "images/busybox"
        image.mkdir(parents=True)
        source = guest("busybox")
        shutil.copy(source.kernel, image / "vmlinuz")
        shutil.copy(source.initrd, image / "initrd")
        (image / "image.json").write_text(json.dumps(IMAGE_JSON))
        for path in [self.home / "images", image, *image.iterdir()]:
            place.own(path)

    def start(self, env=None, fds=()):
        """Starts it and waits until it serves."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            name = f"\0corbel-test-{os.getpid()}-{id(self)}"
            ready.bind(name)
            ready.settimeout(LIMIT_S)
            self.process = subprocess.Popen(
                self.place.wrap([self.program, *self.arguments]), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=open(self.home / "log", "ab"), pass_fds=fds,
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "@" + name[1:], **(env or {})})
            ready.settimeout(0.2)
            while True:
                with contextlib.suppress(TimeoutError):
                    expect(ready.recv(100) == b"READY=1", "another message than READY=1")
                    return self
                expect(self.process.poll() is None, f"it did not start: {self.log()}")

    def log(self):
        return (self.home / "log").read_text()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def ask(self, method, path, body=None):
        """Status and answer of a call."""
        client = Client(self.socket)
        try:
            headers = {"content-type": "application/json"} if body is not None else {}
            client.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = client.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else None
        finally:
            client.close()

    def done(self, answer):
        """Waits for the operation of an answer; returns it."""
        status, answer = answer
        expect(status in (200, 201, 202), f"{status}: {answer}")
        watch = answer["operation"]["id"]
        while True:
            operation = self.ask("GET", f"/v1/operations/{watch}/wait?timeout_ms=20000")[1]
            if operation["state"] not in ("pending", "running"):
                return operation

    def create(self, name, **more):
        operation = self.done(self.ask("POST", "/v1/instances", {
            "name": name, "image": "busybox", "type": "micro", "engine": ENGINE, **more}))
        expect(operation["state"] == "done", f"{operation}")
        return self.show(name)

    def show(self, name):
        status, instance = self.ask("GET", f"/v1/instances/{name}")
        expect(status == 200, f"{status}: {instance}")
        return instance

    def until(self, name, holds):
        """Waits until the instance is as it should be: each look waits for a change of anything."""
        while True:
            instance = self.show(name)
            if holds(instance):
                return instance
            with subprocess.Popen(["sleep", "0.05"]):  # a poll, not a limit
                pass

    def close(self):
        if self.process is not None and self.process.poll() is None:
            for instance in self.ask("GET", "/v1/instances")[1]["items"]:
                self.done(self.ask("DELETE", f"/v1/instances/{instance['id']}"))
            self.end()
        shutil.rmtree(self.home, ignore_errors=True)


@contextlib.contextmanager
def daemon(place):
    thing = Daemon(place)
    try:
        yield thing
    finally:
        thing.close()


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def prepare_platform(place):
    program = place.path / "platform"
    if not program.exists():
        place._copy(BUILD / "tests/platform/platform")
    return program


def end_machines_of(folder):
    """What a test that failed has left: processes whose command lines name its directory."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def run_platform(place, *arguments):
    program = prepare_platform(place)
    source = guest("busybox")
    image = pathlib.Path(tempfile.mkdtemp(prefix="cplat-image-", dir="/tmp"))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    folder = place.own(tempfile.mkdtemp(prefix="cplat-", dir=memory))
    try:
        shutil.copy(source.kernel, image / "vmlinuz")
        shutil.copy(source.initrd, image / "initrd")
        image.chmod(0o755)
        with delegated_groups("cpu", "cpuset") as (group, folders):
            if group:
                arguments += ("--cgroup", group, "--cgroup-dirs", ",".join(folders))
            result = subprocess.run(
                place.wrap([program, "--vmm", place.vmm, "--image", image, "--dir", folder,
                            *arguments]),
                check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=20 * LIMIT_S)
            if result.returncode != 0:
                end_machines_of(folder)
            expect(result.returncode == 0, f"{arguments}:\n{result.stdout}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(image, ignore_errors=True)


def survive_kills_at_each_step(place):
    """Both sides of each step, each time that it comes. They wait more than they work: several at
    the same time. Every day, a part of them that another number begins."""
    if not FULL:
        run_platform(place, "--steps", "19", "--first", str(int.from_bytes(os.urandom(2), "little")))
        return
    prepare_platform(place)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        parts = [pool.submit(run_platform, place, "--steps", str(AT_ONCE), "--first", str(part))
                 for part in range(AT_ONCE)]
        for part in parts:
            part.result()


def survive_kills_at_random(place):
    seed = str(int.from_bytes(os.urandom(2), "little"))
    run_platform(place, "--ops", "1000" if FULL else "60", "--seed", seed)


def leave_nothing_behind(place):
    run_platform(place, "--cycles", "500" if FULL else "12")


def create_at_the_same_time(place):
    run_platform(place, "--parallel", "50" if FULL else "8")


def find_machines_again(place):
    with daemon(place) as it:
        it.start()
        before = it.create("vm")
        for number in (signal.SIGTERM, signal.SIGKILL):
            it.end(number)
            expect(is_alive(before["pid"]), "the machine ended with the daemon")
            it.start()
            after = it.until("vm", lambda i: i["state"] == "running")
            expect(after["pid"] == before["pid"], f"another process: {after}")
        operation = it.done(it.ask("POST", "/v1/instances/vm/stop", {"force": True}))
        expect(operation["state"] == "done", f"{operation}")
        expect(not is_alive(before["pid"]), "the machine runs on")


def notice_what_ended_meanwhile(place):
    with daemon(place) as it:
        it.start()
        lasting = it.create("lasting", restart="never")
        off = it.create("off", cmdline="console=ttyS0 quiet corbel.run=true", desired="stopped")
        expect(off["state"] == "stopped", f"{off}")
        it.end(signal.SIGKILL)
        os.kill(lasting["pid"], signal.SIGKILL)
        it.start()
        ended = it.until("lasting", lambda i: i["state"] not in ("running", "starting"))
        expect(ended["state"] == "failed" and ended["reason"], f"{ended}")


def restart_by_policy(place):
    with daemon(place) as it:
        it.start()
        crashed = it.create("crash")
        os.kill(crashed["pid"], signal.SIGKILL)
        again = it.until("crash", lambda i: i["state"] == "running" and
                         i["pid"] != crashed["pid"])
        expect(again["restarts"] == 1, f"{again}")
        # A guest that switches itself off has not failed.
        it.create("finish", cmdline="console=ttyS0 quiet corbel.run=true")
        ended = it.until("finish", lambda i: i["state"] == "stopped")
        expect("restarts" not in ended and ended["reason"], f"{ended}")
        events = it.ask("GET", "/v1/events?limit=1000")[1]["items"]
        seen = [event["action"] for event in events]
        expect("instance.restarted" in seen and "instance.ended" in seen, f"{seen}")


def refuse_a_second_daemon(place):
    with daemon(place) as it:
        it.start()
        second = subprocess.run(place.wrap([it.program, *it.arguments]), check=False, text=True,
                                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=LIMIT_S)
        expect(second.returncode == 1 and "another process has" in second.stderr, second.stderr)
        expect(it.ask("GET", "/v1/instances")[0] == 200, "the first one is disturbed")


def refuse_a_damaged_database(place):
    with daemon(place) as it:
        it.start()
        before = it.create("vm")
        it.end()
        database = it.home / "state/state.db"
        whole = database.read_bytes()
        database.write_bytes(whole[:len(whole) // 2])
        broken = subprocess.run(place.wrap([it.program, *it.arguments]), check=False, text=True,
                                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=LIMIT_S)
        expect(broken.returncode == 1 and "damaged" in broken.stderr, broken.stderr)
        expect(is_alive(before["pid"]), "the machine suffered")
        database.write_bytes(whole)
        it.start()
        expect(it.until("vm", lambda i: i["state"] == "running")["pid"] == before["pid"], "lost")


def take_a_socket_that_was_opened_before(place):
    with daemon(place) as it:
        path = it.home / "given.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            place.own(path)
            listener.listen()
            it.socket = path
            # The number of the process is known only to itself: a shell says it and becomes it.
            fd = listener.fileno()
            script = (f'exec 3<&{fd}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"')
            program, it.program = it.program, "/bin/sh"
            arguments, it.arguments = it.arguments, ["-c", script, program, *it.arguments]
            it.start(fds=(fd,))
            it.program, it.arguments = program, arguments
        expect(it.ask("GET", "/v1/instances")[0] == 200, "no answer there")
        expect(not (it.home / "run/api.sock").exists(), "it opened its own, too")


TESTS = [
    ("a daemon killed at a step goes on with what it finds", survive_kills_at_each_step),
    ("random work and random kills lose and double nothing", survive_kills_at_random),
    ("creating and deleting leaves nothing behind", leave_nothing_behind),
    ("many are created at the same time", create_at_the_same_time),
]
DAEMON_TESTS = [
    ("machines go on without the daemon, which finds them again", find_machines_again),
    ("what ended while the daemon was away is noticed", notice_what_ended_meanwhile),
    ("a machine that crashes is started again, one that finished is not", restart_by_policy),
    ("a second daemon on the same state is refused", refuse_a_second_daemon),
    ("a damaged database is refused, and its machines run on", refuse_a_damaged_database),
    ("a socket from the service manager is used", take_a_socket_that_was_opened_before),
]

if __name__ == "__main__":
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--full"]
    run_tests(TESTS if FULL else TESTS + DAEMON_TESTS)
