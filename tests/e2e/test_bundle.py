#!/usr/bin/python3
"""The single file, alone in an empty root: no C library, no shell, no /etc; only /proc, /dev and two directories.

usage: test_bundle.py    (CORBEL_BUNDLE: the file, `make test-bundle` makes it; without, the build's own
                          program, which links the host's libraries, with these beside it)
"""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from harness import BUILD, LIMIT_S, ORDINARY_UID, Failure, expect, guest, run_tests

BUNDLE = os.environ.get("CORBEL_BUNDLE")
PROGRAM = pathlib.Path(BUNDLE or BUILD / "corbel-bundle").resolve()
GUEST_MAX = 4 << 20  # less than its kernel takes
READY = "corbel-busybox: ready"

if shutil.which("bwrap") is None:
    print("skipped: bubblewrap is not installed")
    sys.exit(77)


class Root:
    """A root with the one file in it, and processes there. They see the host's processes, so that a
    daemon stays when the one that started it ends, and no network."""

    def __init__(self, network=False):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="corbel-bundle-"))
        for name in ("proc", "dev", "tmp", "home"):
            (self.path / name).mkdir()
        self.began = time.monotonic()
        shutil.copy(PROGRAM, self.path / "corbel")
        self.file = self.path / "corbel"
        self.file.chmod(0o755)
        if os.geteuid() == 0:
            for path in (self.path, *self.path.iterdir()):
                os.chown(path, ORDINARY_UID, ORDINARY_UID)
        self.path.chmod(0o755)
        self.home = self.path / "home"
        self.images = self.home / ".local/share/corbel/images"
        self.words = ["bwrap", *([] if network else ["--unshare-net"]), "--unshare-ipc", "--bind", self.path, "/", "--dev", "/dev",
                      "--bind", "/proc", "/proc", "--chdir", "/"]
        if os.geteuid() == 0:
            self.words += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
        if not BUNDLE:
            for place in ("/usr", "/bin", "/lib", "/lib64"):
                self.words += ["--ro-bind", place, place]
            source = guest("busybox")
            self.images.mkdir(parents=True)
            shutil.copytree(source.dir, self.images / "busybox")
            subprocess.run(["chown", "-R", str(ORDINARY_UID), self.home], check=os.geteuid() == 0, stderr=subprocess.DEVNULL)

    def start(self, *words, program="/corbel", limit=None):
        def prepare():
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(ORDINARY_UID)
                os.setuid(ORDINARY_UID)
        return subprocess.Popen([*self.words, program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, errors="replace", preexec_fn=prepare,
                                env={"HOME": "/home", "PATH": "/usr/bin:/bin"})

    def run(self, *words, status=0, **more):
        process = self.start(*words, **more)
        try:
            output, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired as late:
            process.kill()
            raise Failure(f"corbel {' '.join(words)} did not end") from late
        expect(process.returncode == status, f"corbel {' '.join(words)}: status {process.returncode}, not {status}\n"
                                             f"{output[-2000:]}\n{errors}")
        return output, errors

    def state(self, name):
        rows = json.loads(self.run("list", "--json")[0])
        return next((row["state"] for row in rows if row["name"] == name), None)

    def programs(self):
        """{process id: name} of those that run the file of this root."""
        found = {}
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # What runs in the root shows its own paths there.
                if os.stat(entry / "root").st_ino == os.stat(self.path).st_ino:
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
        return found

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        with contextlib.suppress(Failure):
            self.run("daemon", "stop")
        for process in self.programs():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.path, ignore_errors=True)


def files_of(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if not path.name.endswith(".lock"))


def says_what_it_is(_place):
    with Root() as root:
        output, _ = root.run("--version")
        expect(re.fullmatch(r"corbel \d+\.\d+\.\d+ \(single file\)\n", output), output)
        for name in ("corbeld", "corbel-vmm"):
            (root.path / name).symlink_to("corbel")
            output, _ = root.run("--version", program=f"/{name}")
            expect(output.startswith(f"{name} "), f"{name}: {output}")


def runs_a_guest(_place):
    with Root() as root:
        output, _ = root.run("run", "busybox", "--detach", "--wait")
        expect(READY in output, f"the guest's console does not say {READY!r}:\n{output}")
        print(f"# {time.monotonic() - root.began:.2f} s from the copy of the file ({PROGRAM.stat().st_size >> 20} MiB) "
              f"to {READY!r}", flush=True)
        expect(root.state("busybox") == "running", f"the machine is {root.state('busybox')}")
        programs = root.programs()
        expect({"corbeld", "corbel-vmm"} <= set(programs.values()), f"processes: {programs}")
        if BUNDLE:
            for process in programs:
                mapped = {line.split(maxsplit=5)[5] for line in pathlib.Path(f"/proc/{process}/maps").read_text().splitlines()
                          if len(line.split(maxsplit=5)) > 5}
                foreign = [name for name in mapped if ".so" in name]
                expect(not foreign, f"{programs[process]} loaded {foreign}")
        root.run("stop", "busybox")
        expect(root.state("busybox") == "stopped", f"the machine is {root.state('busybox')}")
        root.run("delete", "busybox")
        root.run("daemon", "stop")
        expect(not root.programs(), f"left behind: {root.programs()}")


def goes_on_when_replaced(_place):
    """What the daemon starts is the file that it runs itself, though its name is another file's by now."""
    with Root() as root:
        root.run("run", "busybox", "--name", "first", "--detach")
        shutil.copy2(root.file, root.path / "kept")
        damaged = root.path / "new"
        damaged.write_bytes(b"no program\n")
        damaged.chmod(0o755)
        damaged.rename(root.file)
        output, _ = root.run("run", "busybox", "--name", "second", "--detach", "--wait", program="/kept")
        expect(READY in output, output)
        rows = json.loads(root.run("list", "--json", program="/kept")[0])
        expect(sorted((row["name"], row["state"]) for row in rows) == [("first", "running"), ("second", "running")], rows)
        for name in ("first", "second"):
            root.run("delete", "--force", name, program="/kept")
        root.run("daemon", "stop", program="/kept")


def leaves_nothing_half_done(_place):
    """No room for a guest's files: an error, and no image; with room it is made."""
    with Root() as root:
        shutil.rmtree(root.images, ignore_errors=True)
        _, errors = root.run("image", "build", "busybox", status=1, limit=GUEST_MAX)
        expect("cannot be written" in errors, errors)
        expect(files_of(root.images) == [], files_of(root.images))
        makers = [root.start("image", "build", "busybox") for _ in range(3)]
        for maker in makers:
            _, errors = maker.communicate(timeout=LIMIT_S)
            expect(maker.returncode == 0, errors)
        expect(files_of(root.images) == ["busybox", "busybox/image.json", "busybox/initrd", "busybox/vmlinuz"],
               files_of(root.images))


def knows_the_catalogue(_place):
    with Root() as root:
        output, _ = root.run("image", "catalogue")
        expect("debian-12-cloud" in output, output)
        _, errors = root.run("run", "debian-12-cloud", status=3)
        expect("corbel image fetch debian-12-cloud" in errors, errors)
        root.run("daemon", "stop")


def says_what_the_host_lacks(_place):
    with Root() as root:
        _, errors = root.run("run", "nothing", status=3)
        expect("busybox is inside this program" in errors, errors)
        _, errors = root.run("image", "build", "debian", status=5)
        expect("/bin/sh" in errors and "Debian" in errors, errors)
        expect(not list(root.home.glob(".cache/corbel/builders-*")), "the builders were left behind")
        root.run("daemon", "stop")
    with Root(network=True) as root, socket.create_server(("127.0.0.1", 0)) as server:
        address = f"https://127.0.0.1:{server.getsockname()[1]}/x.raw"
        _, errors = root.run("image", "fetch", address, "--insecure-no-checksum", status=5)
        expect("ca-certificates" in errors, errors)


def runs_a_disk_from_elsewhere(_place):
    """A cloud's kind of image: no tool of the host's reads it, or finds its kernel."""
    with Root() as root:
        disk = root.home / "debian.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", guest("debian").disk, disk], check=True)
        disk.chmod(0o644)
        began = time.monotonic()
        _, errors = root.run("image", "import", "/home/debian.qcow2", "--name", "elsewhere")
        expect(errors == "", errors)
        output, _ = root.run("run", "elsewhere", "--detach", "--wait")
        expect("login:" in output, output)
        print(f"# {time.monotonic() - began:.2f} s from the beginning of the import to a running Debian", flush=True)
        rows = json.loads(root.run("list", "--json")[0])
        expect([row["state"] for row in rows] == ["running"], rows)


def builders_are_inside(_place):
    """Where there is a shell they run, and say what they need."""
    with Root() as root:
        _, errors = root.run("image", "build", "debian", "--mode", "none", status=1)
        expect("exited" in errors, errors)
        expect(not list(root.home.glob(".cache/corbel/builders-*")), "the builders were left behind")


TESTS = [
    ("it says what it is, by each of its names", says_what_it_is),
    ("a guest runs, with nothing of the host", runs_a_guest),
    ("the catalogue is inside", knows_the_catalogue),
    ("machines start from the file that runs, when another has its name", goes_on_when_replaced),
]
INSIDE = [
    ("nothing half-done stays, and several at once make one image", leaves_nothing_half_done),
    ("it says what the host lacks", says_what_the_host_lacks),
    ("a Debian disk of elsewhere runs", runs_a_disk_from_elsewhere),
]
SHARED = [
    ("the builders of images are inside", builders_are_inside),
]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends daemons and machines
run_tests(TESTS + (INSIDE if BUNDLE else SHARED))
