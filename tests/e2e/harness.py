"""What the end-to-end tests share: machines, guests, an ordinary user, and TAP output.

Nothing here passes or fails by the clock: a test waits for an event (a text on the console, the
end of a process), and LIMIT_S only keeps a broken build from hanging for ever.
"""

import atexit
import contextlib
import fcntl
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

LIMIT_S = float(os.environ.get("CORBEL_E2E_LIMIT", "900"))
SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("CORBEL_BUILD", SOURCE / "build")).resolve()
# What the kernel says stands on the console too, in the middle of what a program writes there.
KERNEL_LINE = re.compile(rb"\[ *\d+\.\d{6}\] [^\n]*\n")
KERNEL_LINE_BEGUN = re.compile(rb"\[ *(\d+(\.(\d{1,5}|\d{6}(\]( [^\n]*)?)?)?)?)?\Z")
# A user that owns nothing here. Without root the tests run as who we are, an ordinary user already.
ORDINARY_UID = 65534


class Failure(Exception):
    """What a test saw is not what it must see."""


def expect(condition, text):
    if not condition:
        raise Failure(text)


class Workplace:
    """A directory that the ordinary user owns, with the programs copied where that user can run
    them; the source tree may lie in a directory that only root enters."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="corbel-e2e-"))
        self.path.chmod(0o755)
        self.home = self.path / "home"
        self.home.mkdir()
        if os.geteuid() == 0:
            os.chown(self.home, ORDINARY_UID, ORDINARY_UID)
        self.vmm = self._copy(os.environ.get("CORBEL_VMM") or BUILD / "corbel-vmm")
        self.sandbox = self._copy(BUILD / "tests/e2e/container-seccomp")

    def _copy(self, program):
        target = self.path / pathlib.Path(program).name
        shutil.copy(program, target)
        target.chmod(0o755)
        return target

    def close(self):
        shutil.rmtree(self.path, ignore_errors=True)

    def own(self, path):
        if os.geteuid() == 0:
            os.chown(path, ORDINARY_UID, ORDINARY_UID)
        return path

    def disk(self, source, name):
        """A copy of a disk image for one machine."""
        target = self.home / name
        subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
        target.chmod(0o600)
        return self.own(target)

    def wrap(self, command, container=False):
        """The command as the ordinary user runs it, under a container's filter (True) or another
        one of container-seccomp by its name."""
        words = [str(self.sandbox)]
        if os.geteuid() == 0:
            words += ["--uid", str(ORDINARY_UID)]
        if container:
            words.append("--filter" if container is True else f"--{container}")
        return words + [str(word) for word in command]


class Guest:
    """An image as `corbel image build` left it; the ordinary user can read kernel and initrd."""

    _readable = {}

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.kernel = self.readable(self.dir / "vmlinuz")
        self.initrd = self.readable(self.dir / "initrd")
        self.disk = self.dir / "disk.raw"
        words = json.loads((self.dir / "image.json").read_text())["cmdline"].split()
        self.root = next((word for word in words if word.startswith("root=")), "")


    @classmethod
    def readable(cls, path):
        """The file, or a copy where the source tree may lie in a directory only root enters."""
        if os.geteuid() != 0:
            return path
        if path not in cls._readable:
            place = pathlib.Path(tempfile.mkdtemp(prefix="corbel-guest-"))
            atexit.register(shutil.rmtree, place, ignore_errors=True)
            place.chmod(0o755)
            shutil.copy(path, place)
            (place / path.name).chmod(0o644)
            cls._readable[path] = place / path.name
        return cls._readable[path]


def is_stale(kind, image):
    """Whether its builder has changed since."""
    builder = SOURCE / "images"
    name = kind.split("-", maxsplit=1)[0]
    sources = [builder / f"build-{name}.sh", builder / "lib.sh", *(builder / name).iterdir()]
    return any(path.stat().st_mtime > image.stat().st_mtime for path in sources)


def build_guest(kind, words, data):
    shutil.rmtree(data / "corbel" / "images" / kind, ignore_errors=True)
    print(f"# building the {kind} image", flush=True)
    result = subprocess.run([str(BUILD / "corbel"), "image", "build", *words], check=False,
                            env={**os.environ, "XDG_DATA_HOME": str(data)},
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    expect(result.returncode == 0, f"the {kind} image was not built:\n{result.stdout}")


def guest(kind, *words):
    """The image of that kind; builds it in the build directory when it is not there yet, or old, with the
    words for `corbel image build` if it is more than its name says."""
    given = os.environ.get("CORBEL_GUESTS")
    if given:
        return Guest(pathlib.Path(given) / kind)
    data = BUILD / "guests"
    place = data / "corbel" / "images" / kind
    data.mkdir(parents=True, exist_ok=True)
    with open(data / f"{kind}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test may want the same one now
        if not (place / "image.json").exists() or is_stale((words or [kind])[0], place / "image.json"):
            build_guest(kind, words or [kind], data)
    return Guest(place)


def free_port():
    """For programs that cannot tell which one they took; somebody else may be faster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def web_server(body, host="127.0.0.1"):
    """Answers each GET with the body: its port."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *unused):
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Control:
    """A client of a monitor's control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rwb")

    def line(self):
        try:
            data = self.file.readline()
        except ConnectionResetError:  # closed before it had read all of ours
            data = b""
        return json.loads(data) if data else None

    def ask(self, command, **more):
        self.file.write(json.dumps({"command": command, **more}).encode() + b"\n")
        self.file.flush()
        return self.line()

    def expect_ok(self, command, **more):
        answer = self.ask(command, **more)
        expect(answer and answer["ok"], f"{command}: {answer}")
        return answer

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()


def end_with(process):
    """Ends the process when this program ends, however it does, short of SIGKILL."""
    atexit.register(process.kill)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class Machine:
    """One running monitor with its console on our pipes."""

    def __init__(self, place, arguments, container=False, preexec=None):
        self.console = b""  # without the kernel's lines
        self.held = b""  # the end, which may begin one
        self.raw = b""
        self.changed = threading.Condition()
        self.ended = False
        command = place.wrap([place.vmm, *arguments], container)
        self.command = command
        self.process = subprocess.Popen(command, cwd=place.home, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        preexec_fn=preexec,
                                        env={"PATH": os.environ["PATH"], "HOME": str(place.home),
                                             **{k: v for k, v in os.environ.items()
                                                if k.startswith("QEMU_")}})
        end_with(self.process)
        self.stderr = b""
        self.readers = [threading.Thread(target=self._read_console, daemon=True),
                        threading.Thread(target=self._read_errors, daemon=True)]
        for reader in self.readers:
            reader.start()

    def _read_console(self):
        for chunk in iter(lambda: self.process.stdout.read1(65536), b""):
            with self.changed:
                self.raw += chunk
                fresh = KERNEL_LINE.sub(b"", self.held + chunk)
                begun = KERNEL_LINE_BEGUN.search(fresh)
                self.held = begun.group() if begun else b""
                self.console += fresh[:len(fresh) - len(self.held)]
                self.changed.notify_all()
        with self.changed:
            self.console += self.held
            self.ended = True
            self.changed.notify_all()

    def _read_errors(self):
        for chunk in iter(lambda: self.process.stderr.read1(65536), b""):
            self.stderr += chunk

    def mark(self):
        """A place in the console's output, for wait_text(after=...)."""
        with self.changed:
            return len(self.console)

    def wait_text(self, text, after=0):
        """Waits until the console shows text; fails when the machine ends first."""
        wanted = text.encode()
        with self.changed:
            self.changed.wait_for(lambda: self.ended or wanted in self.console[after:], LIMIT_S)
            found = self.console.find(wanted, after)
        if found < 0:
            why = "the machine ended" if self.ended else f"{LIMIT_S:.0f} seconds passed"
            raise Failure(f"{why} before the console showed {text!r}\n{self.story()}")
        return found

    def type(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def run(self, command):
        """Runs a command in the busybox guest's shell: its output, after checking its status."""
        start = self.mark()
        self.type(f"{command}; echo status=$?.\n")
        # The shell echoes the line with "$?"; only the answer has digits there.
        with self.changed:
            def status():
                tail = self.console[start:]
                position = tail.rfind(b"status=")
                return position >= 0 and tail[position + 7:position + 8].isdigit() and \
                    b"." in tail[position:]
            self.changed.wait_for(lambda: self.ended or status(), LIMIT_S)
            expect(status(), f"no answer to {command!r}\n{self.story()}")
            output = self.console[start:].decode(errors="replace")
        expect("status=0." in output, f"{command!r} failed in the guest:\n{output}")
        return output

    def network_up(self):
        """Gives the busybox guest its address; its own try at boot ends after some seconds."""
        self.run("udhcpc -i eth0 -q -T 1 -A 1 -s /etc/udhcpc.script")

    def wait_exit(self):
        """The exit status of the monitor."""
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"the monitor did not end\n{self.story()}") from late
        for reader in self.readers:
            reader.join(LIMIT_S)
        return status

    def story(self):
        """What a person needs to see when a test failed."""
        return (f"command: {' '.join(self.command)}\n"
                f"stderr: {self.stderr.decode(errors='replace')[-2000:]}\n"
                f"console: {self.raw.decode(errors='replace')[-3000:]}")

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self.readers:
            reader.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                stream.close()


def wait_greeting(port, machine):
    """Until the guest's ssh server greets at the forwarded port. The forward takes a connection
    before the guest does and drops it when the guest refuses, so the only event to wait for is a
    greeting; it is asked for until it comes or the machine ends."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and not machine.ended:
        with contextlib.suppress(OSError), \
                socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
            if peer.recv(4) == b"SSH-":
                return
        with machine.changed:
            machine.changed.wait(0.2)
    raise Failure(f"the ssh server does not answer\n{machine.story()}")


class Ssh:
    """Commands in a guest over ssh, with the key of its image."""

    def __init__(self, image, port, machine):
        self.machine = machine
        self.directory = tempfile.TemporaryDirectory()
        key = pathlib.Path(self.directory.name) / "key"
        shutil.copy(image.dir / "ssh_key", key)
        key.chmod(0o600)
        self.base = ["ssh", "-i", str(key), "-o", f"UserKnownHostsFile={image.dir}/known_hosts",
                     "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
                     "-o", "ConnectTimeout=900", "-o", "ServerAliveInterval=60",
                     "-o", "ServerAliveCountMax=15",
                     "-p", str(port), "root@127.0.0.1"]

    def start(self, command):
        """Runs a command whose status does not matter: the guest may be gone before it answers."""
        return subprocess.run(self.base + [command], check=False, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=LIMIT_S)

    def run(self, command):
        result = self.start(command)
        expect(result.returncode == 0,
               f"{command!r} over ssh: status {result.returncode}\n{result.stdout}\n"
               f"{self.machine.story()}")
        return result.stdout


def run_tests(tests):
    """Runs (name, function) pairs in order, prints TAP, exits 1 when one failed.

    Words on the command line choose the tests whose names hold one of them.
    """
    chosen = [t for t in tests if not sys.argv[1:] or any(w in t[0] for w in sys.argv[1:])]
    place = Workplace()
    failed = 0
    print(f"1..{len(chosen)}", flush=True)
    try:
        for number, (name, function) in enumerate(chosen, 1):
            try:
                function(place)
                print(f"ok {number} - {name}", flush=True)
            except Exception as error:  # a failed test must not hide the ones after it
                failed += 1
                text = str(error) if isinstance(error, Failure) else traceback.format_exc()
                print(f"not ok {number} - {name}", flush=True)
                print("\n".join("# " + line for line in text.splitlines()), flush=True)
    finally:
        place.close()
    sys.exit(1 if failed else 0)
