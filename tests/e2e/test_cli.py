#!/usr/bin/python3
"""The `corbel` command as an ordinary user types it: images, machines, consoles, and mistakes."""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import threading

from harness import BUILD, LIMIT_S, ORDINARY_UID, SOURCE, Failure, expect, guest, run_tests

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")


class User:
    """An ordinary user with a home and a runtime directory, and corbel where that user can run it:
    bin/ and share/corbel/images as make install lays them out."""

    def __init__(self, place):
        self.place = place
        self.container = False  # whether all runs under a container's filter
        # Unix sockets take 107 characters, so the runtime directory must be near the root.
        self.home = place.own(tempfile.mkdtemp(prefix="ce2e-", dir="/tmp"))
        prefix = place.path / "prefix"
        if not prefix.exists():
            (prefix / "bin").mkdir(parents=True)
            for name in ("corbel", "corbel-vmm", "corbeld"):
                shutil.copy(BUILD / name, prefix / "bin" / name)
            shutil.copytree(SOURCE / "images", prefix / "share/corbel/images")
        self.corbel = prefix / "bin/corbel"
        self.env = {"PATH": os.environ["PATH"], "HOME": self.home, "XDG_RUNTIME_DIR": self.home,
                    "XDG_CACHE_HOME": os.path.join(self.home, "cache")}

    def use_image(self, kind):
        """Gives the user a copy of an image that the build directory has."""
        source = guest(kind).dir
        target = os.path.join(self.home, ".local/share/corbel/images", kind)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        subprocess.run(["cp", "-r", "--sparse=always", str(source), target], check=True)
        for path in ("ssh_key", "console_password"):
            if os.path.exists(os.path.join(target, path)):
                os.chmod(os.path.join(target, path), 0o600)
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", str(ORDINARY_UID), self.home], check=True)

    def start(self, *words, preexec=None, **more):
        return subprocess.Popen(self.place.wrap([self.corbel, *words], self.container), cwd=self.home, text=True,
                                env={**self.env, **more}, preexec_fn=preexec, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words, status=0, **more):
        """Runs corbel, which must exit with the status: (standard output, standard error)."""
        process = self.start(*words, **more)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
        expect(process.returncode == status,
               f"corbel {' '.join(map(str, words))}: status {process.returncode}, not {status}\n"
               f"{out[-3000:]}\n{err[-3000:]}")
        return out, err

    def images(self):
        """Every name in the user's collection of images but the locks, hidden ones too."""
        directory = os.path.join(self.home, ".local/share/corbel/images")
        names = os.listdir(directory) if os.path.isdir(directory) else []
        return sorted(name for name in names if not name.endswith(".lock"))

    def end(self):
        """Deletes what this user's daemon keeps, and ends it, where there is one."""
        if os.path.exists(os.path.join(self.home, "corbeld/api.sock")):
            self.run("delete", "--all", "--force")
            self.run("daemon", "stop")

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.end()
        shutil.rmtree(self.home, ignore_errors=True)


def explain_mistakes(place):
    with User(place) as user:
        user.run(status=2)
        user.run("--help")
        user.run("frobnicate", status=2)
        user.run("image", status=2)
        user.run("run", "--no-such-option", status=2)
        user.run("run", "--cpus", "many", status=2)
        user.run("ssh", "a", "b", status=2)
        user.run("image", "build", "windows", status=2)
        user.run("run", "../escape", status=2)
        for words, text in ((("run", "nothing"), "image build"), (("ssh", "nothing"), "nothing"),
                            (("stop",), "no instance runs"), (("image", "show", "nothing"), "build"),
                            (("image", "remove", "nothing"), "nothing"),
                            (("delete", "nothing"), "nothing")):
            _, err = user.run(*words, status=3)
            lines = [line for line in err.splitlines() if "started corbeld" not in line]
            expect(text in err and len(lines) == 1, f"{words}: {err}")
        expect(json.loads(user.run("list", "--json")[0]) == [], "instances out of nowhere")
        expect(json.loads(user.run("image", "list", "--json")[0]) == [], "images out of nowhere")


def start_daemons_at_once(place):
    """Many users' first commands at one moment: each one's daemon has a console on a port of its own."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(User(place)) for _ in range(8)]
        processes = [user.start("list", "--json") for user in users]
        for process in processes:
            out, err = process.communicate(timeout=LIMIT_S)
            expect(process.returncode == 0 and json.loads(out) == [], f"status {process.returncode}: {err}")
        hosts = [json.loads(user.run("daemon", "status", "--json")[0]) for user in users]
        urls = {url for host in hosts for url in host["urls"]}
        expect(len(urls) == len(users), hosts)


def diagnose_host(place):
    with User(place) as user:
        rows = {row["name"]: row for row in json.loads(user.run("doctor", "--json")[0])}
        expect(rows["corbel-vmm"]["ok"] and rows["ssh"]["ok"], rows)
        process = user.start("doctor", PATH="/nonexistent")
        out, _ = process.communicate(timeout=LIMIT_S)
        expect(process.returncode == 5, f"a missing ssh gives status {process.returncode}")
        expect("sudo apt-get install openssh-client" in out, f"no mend in:\n{out}")


def install_completion(place):
    """What make install puts where the shells look: theirs, and in bash it completes a verb."""
    root = place.path / "root"
    subprocess.run(["meson", "install", "-C", BUILD, "--no-rebuild", "--tags", "runtime", "--destdir", root], check=True,
                   stdout=subprocess.DEVNULL)
    with User(place) as user:
        (share,) = root.glob("**/share")
        for shell, path in (("bash", "bash-completion/completions/corbel"), ("zsh", "zsh/site-functions/_corbel"),
                            ("fish", "fish/vendor_completions.d/corbel.fish")):
            expect((share / path).read_text() == user.run("completion", shell)[0], f"{shell}'s is another")
        (program,) = root.glob("**/bin/corbel")
        script = f"PATH='{program.parent}:$PATH'; . '{share}/bash-completion/completions/corbel'; " \
                 "complete -p corbel; COMP_WORDS=(corbel al); COMP_CWORD=1; _corbel; printf '%s' \"${COMPREPLY[*]}\""
        out = subprocess.run(["bash", "-ec", script], check=True, stdout=subprocess.PIPE, text=True).stdout
        expect(out.splitlines() == ["complete -o default -F _corbel corbel", "alarm"], out)


def live_through_busybox(place):
    with User(place) as user:
        user.use_image("busybox")
        out, _ = user.run("run", "busybox", "--engine", ENGINE, "--detach", "--wait")
        expect("corbel-busybox: ready" in out, f"the console was not shown:\n{out}")
        (row,) = json.loads(user.run("list", "--json")[0])
        expect(row["state"] == "running" and row["name"] == "busybox", row)
        _, err = user.run("run", "busybox", status=4)
        expect("already" in err and str(row["pid"]) in err, err)
        user.run("delete", "busybox", status=4)
        counters = json.loads(user.run("stats", "--json")[0])
        expect(counters["serial.out_bytes"] >= len("corbel-busybox: ready"), counters)
        table = dict(line.split() for line in user.run("stats", "busybox")[0].splitlines())
        expect(table.keys() == {name for name, value in counters.items() if isinstance(value, int)}, table)
        user.run("run", "busybox", "--name", "second", "--engine", ENGINE, "--detach")
        _, err = user.run("stop", status=2)
        expect("2 instances" in err, err)
        user.run("stop", "second")
        user.run("stop")
        rows = json.loads(user.run("list", "--json")[0])
        expect([r["state"] for r in rows] == ["stopped", "stopped"], rows)
        user.run("delete", "second")
        user.run("delete", "busybox")
        expect(json.loads(user.run("list", "--json")[0]) == [], "an instance is left")


def leave_nothing_of_ephemeral(place):
    with User(place) as user:
        user.use_image("busybox")
        out, _ = user.run("run", "busybox", "--ephemeral", "--engine", ENGINE, "--cmdline",
                          "console=ttyS0 quiet corbel.run=uname_-a")
        expect("Linux" in out and "corbel-busybox: exit 0" in out, f"no output:\n{out}")
        expect(json.loads(user.run("list", "--json")[0]) == [], "the instance is still there")


def report_monitor_failure(place):
    with User(place) as user:
        user.use_image("busybox")
        _, err = user.run("run", "busybox", "--memory", "100T", status=2)
        expect("memory" in err, f"the daemon's own words are missing:\n{err}")
        expect(json.loads(user.run("list", "--json")[0]) == [], "what was refused is there")
        kernel = os.path.join(user.home, ".local/share/corbel/images/busybox/vmlinuz")
        with open(kernel, "r+b") as file:
            file.write(bytes(4096))
        _, err = user.run("run", "busybox", "--engine", ENGINE, status=1)
        expect("kernel" in err, f"the monitor's own words are missing:\n{err}")
        (row,) = json.loads(user.run("list", "--json")[0])
        expect(row["state"] == "failed" and "kernel" in row["reason"], row)


def survive_killed_monitor(place):
    with User(place) as user:
        user.use_image("busybox")
        user.run("run", "busybox", "--engine", ENGINE, "--restart", "never", "--detach")
        (row,) = json.loads(user.run("list", "--json")[0])
        process = os.pidfd_open(row["pid"])
        os.kill(row["pid"], signal.SIGKILL)
        select.select([process], [], [], LIMIT_S)
        os.close(process)
        while json.loads(user.run("show", "busybox", "--json")[0])["state"] != "failed":
            pass
        user.run("run", "busybox", "--engine", ENGINE, "--detach", "--wait")
        user.run("stop", "--force", "busybox")


def make_run(user, *words):
    """What `make run` runs, with the programs where the ordinary user has them: its output."""
    script = user.corbel.parent.parent / "scripts/run"
    script.parent.mkdir(exist_ok=True)
    shutil.copy(SOURCE / "scripts/run", script)
    process = subprocess.run(user.place.wrap([script, *words]), check=False, cwd=user.home, text=True,
                             env={**user.env, "BUILD": "bin"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, timeout=LIMIT_S)
    if process.returncode != 0:
        told = "\n".join(user.run(*what, "debian")[0][-700:] for what in (["stats"], ["logs"]))
        raise Failure(f"scripts/run {words}: status {process.returncode}\n{process.stdout}\n{told}")
    expect("corbel ssh debian" in process.stdout, process.stdout)
    return process.stdout


def use_debian(place):
    with User(place) as user:
        user.use_image("debian")
        # A forward and a tag, for they stand before the state in what is listed of it.
        out = make_run(user, "--engine", ENGINE, "--cpus", "2", "--forward", "80", "--tag", "env=test")
        expect("Linux debian" in out and "already" not in out, out)
        expect("is running already" in make_run(user), "it is not seen that debian runs")
        user.run("pause", "debian")
        expect("Linux debian" in make_run(user), "a paused one does not go on")
        out, _ = user.run("ssh", "--wait", "900", "debian", "--", "uname", "-n")
        expect(out.strip() == "debian", out)
        user.run("ssh", "--wait", "900", "--", "exit 7", status=7)
        user.run("ssh", "--wait", "900", "--", "touch /root/kept && sync")
        user.run("stop", "--wait", "900", "debian")
        # The disk is kept, the image was not written to.
        _, err = user.run("run", "debian", "--engine", ENGINE, "--detach")
        expect("last run" in err, err)
        user.run("ssh", "--wait", "900", "--", "test -e /root/kept")
        user.run("stop", "--wait", "900", "debian")


def keep_nothing_of_failed_build(place):
    with User(place) as user:
        # Packages cannot be read from here.
        process = user.start("image", "build", "busybox", CORBEL_MIRROR="http://127.0.0.1:1/",
                             CORBEL_SECURITY_MIRROR="http://127.0.0.1:1/")
        out, err = process.communicate(timeout=LIMIT_S)
        expect(process.returncode == 1 and "nothing was kept" in err,
               f"status {process.returncode}\n{out}\n{err}")
        expect(user.images() == [], f"left behind: {user.images()}")


def keep_nothing_on_full_disk(place):
    """The host's limit on a file's size stands for a disk without room: the tables of a disk of
    64 TiB are longer than that. The daemon has it from who starts it."""
    with User(place) as user:
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        user.use_image("busybox")
        disk = os.path.join(user.home, ".local/share/corbel/images/busybox/disk.raw")
        with open(disk, "wb") as file:
            file.write(bytes(1 << 20))
        place.own(disk)
        process = user.start("run", "busybox", "--disk", "65536G", "--detach", preexec=limit)
        _, err = process.communicate(timeout=LIMIT_S)
        expect(process.returncode == 1 and "disk.qcow2" in err and "nothing" in err, err)
        expect(json.loads(user.run("list", "--json")[0]) == [], "half an instance is left")


def keep_nothing_of_interrupted_build(place):
    with User(place) as user:
        for number in (signal.SIGTERM, signal.SIGINT):
            process = user.start("image", "build", "busybox")
            lines = iter(process.stdout.readline, "")
            next(line for line in lines if line.startswith("==>"))
            expect(any(name.endswith(".making") for name in user.images()), user.images())
            process.send_signal(number)
            _, err = process.communicate(timeout=LIMIT_S)
            expect(process.returncode == 1 and "stopped by signal" in err, err)
            expect(user.images() == [], f"left behind: {user.images()}")
        # Killed outright it cannot clean up; the builder ends with it, and the next build removes
        # what is left.
        process = user.start("image", "build", "busybox")
        process.stdout.readline()
        process.kill()
        process.communicate(timeout=LIMIT_S)
        user.run("image", "build", "busybox")
        expect(user.images() == ["busybox"], user.images())


def build_twice_at_once(place):
    with User(place) as user:
        results = []

        def build():
            process = user.start("image", "build", "busybox")
            process.communicate(timeout=LIMIT_S)
            results.append(process.returncode)

        threads = [threading.Thread(target=build) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expect(results == [0, 0], f"statuses {results}")
        expect(user.images() == ["busybox"], user.images())


TESTS = [
    ("mistakes are explained in one sentence", explain_mistakes),
    ("daemons of many users start at once", start_daemons_at_once),
    ("doctor names what is missing and the mend", diagnose_host),
    ("words are completed once it is installed", install_completion),
    ("busybox runs, is listed, stops and goes", live_through_busybox),
    ("an ephemeral machine leaves nothing", leave_nothing_of_ephemeral),
    ("the monitor's refusal is passed on", report_monitor_failure),
    ("a killed monitor does not block its name", survive_killed_monitor),
    ("debian runs by scripts/run, answers ssh and keeps its disk", use_debian),
    ("a failed image build leaves nothing", keep_nothing_of_failed_build),
    ("a full disk leaves nothing half-made", keep_nothing_on_full_disk),
    ("an interrupted image build leaves nothing", keep_nothing_of_interrupted_build),
    ("two builds of one image at once both succeed", build_twice_at_once),
]

if __name__ == "__main__":
    run_tests(TESTS)
