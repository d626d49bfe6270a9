#!/usr/bin/python3
"""Programs of a guest whose user code runs natively, wherever it can: what they can do and see is
what it is on a computer of their own (user/user_work.c).

usage: test_user.py [WORD...]     only the tests whose names hold a word
"""

import os
import pathlib
import signal
import time

from harness import Control, Machine, expect, guest, run_tests
from test_boot import arguments

WORK = pathlib.Path(os.environ["CORBEL_BUILD"]) / "tests/e2e/user-work"
SOME_RUNS = 1000


def archive(name, content):
    """A cpio archive with one program in it, which Linux unpacks behind its first."""
    def entry(path, mode, data):
        words = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path) + 1, 0]
        head = b"070701" + b"".join(b"%08x" % word for word in words) + path.encode() + b"\0"
        return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return entry(name, 0o100755, content) + entry("TRAILER!!!", 0, b"")


def run_work(place, cpus, engine, counter, least):
    image = guest("busybox")
    initrd = place.home / "initrd"
    first = image.initrd.read_bytes()
    initrd.write_bytes(first + bytes(-len(first) % 4) + archive("user-work", WORK.read_bytes()))
    initrd.chmod(0o644)
    words = [*arguments(image, cpus, "256M", "console=ttyS0", "--control", "control")]
    words[words.index("--initrd") + 1] = initrd
    words[words.index("--engine") + 1] = engine
    with Machine(place, words) as m:
        m.wait_text("corbel-busybox: ready")
        m.run("/user-work")
        with Control(place.home / "control") as control:
            seen = control.expect_ok("stats")["statistics"]
            expect("always" not in engine or seen.get("native_demotions", 0) == 0, seen)
            expect(seen.get(counter, least) >= least, seen)  # or the host forbids it
            control.expect_ok("quit")
        expect(m.wait_exit() == 0, m.story())


def natively(place):
    """All of it runs natively."""
    run_work(place, 1, "soft,native=always", "native_runs", SOME_RUNS)


def natively_on_two(place):
    """The same on two vCPUs, which share spaces."""
    run_work(place, 2, "soft,native=always", "native_runs", SOME_RUNS)


def as_it_pays(place):
    """It begins translated, and is run natively when it computes; when it goes back is the engine's."""
    run_work(place, 2, "soft", "native_promotions", 1)


def children():
    """Of each process on the host that has not ended: its children's ids and names."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rsplit(")", 1)
        except OSError:  # it has ended meanwhile
            continue
        number, name = name.split(" (", 1)
        if fields.split()[0] != "Z":
            found.setdefault(int(fields.split()[1]), []).append((int(number), name))
    return found


def processes_of(monitor):
    """The process that runs guest code, and its own: runners of user code, and their mappers."""
    below = children()
    mappers = {pid: [child for child, name in below.get(pid, []) if name == "corbel-user"]
               for pid, _ in below.get(monitor, [])}
    executor = next((pid for pid, found in mappers.items() if found), None)
    found = mappers.get(executor, [])
    return {"executor": executor, "mapper": found,
            "runner": [pid for mapper in found for pid, _ in below.get(mapper, [])]}


def is_forbidden(control):
    """Does the host let no user code run natively?"""
    seen = control.expect_ok("stats")["statistics"]
    if "native_runs" not in seen:
        print("# this host lets no user code run natively")
    return "native_runs" not in seen


def kill_under(place, cpus, what):
    """Kills all of these while a program of the guest computes: it may fail, its computer may not."""
    image = guest("busybox")
    words = [*arguments(image, cpus, "256M", "console=ttyS0", "--control", "control")]
    words[words.index("--engine") + 1] = "soft,native=always"
    with Machine(place, words) as m:
        m.wait_text("corbel-busybox: ready")
        m.run("(while :; do :; done) & sleep 1")
        time.sleep(1)  # the shell waits for the next line then, and not in a runner
        victims = processes_of(m.process.pid)
        with Control(place.home / "control") as control:
            if is_forbidden(control):
                return
        expect(victims["mapper"] and victims["runner"], victims)
        for pid in victims[what]:
            os.kill(pid, signal.SIGKILL)
        for _ in range(5):  # a shell that computed just then may be gone, too, and init has another
            m.run("busybox dd if=/dev/urandom bs=64k count=16 2>/dev/null | busybox md5sum")
        with Control(place.home / "control") as control:
            seen = control.expect_ok("stats")["statistics"]
            expect(seen["native_lost"] >= 1, seen)
            expect("where user code ran, has ended" in m.story(), m.story())
            control.expect_ok("quit")
        expect(m.wait_exit() == 0, m.story())


def stopped_and_continued(place):
    """What a frozen group, a debugger or Ctrl-Z does to its processes harms no machine."""
    image = guest("busybox")
    for cpus in (1, 2):
        words = [*arguments(image, cpus, "256M", "console=ttyS0", "--control", "control")]
        words[words.index("--engine") + 1] = "soft,native=always"
        with Machine(place, words) as m:
            m.wait_text("corbel-busybox: ready")
            m.run("(while :; do busybox true; done) & sleep 1")
            with Control(place.home / "control") as control:
                if is_forbidden(control):
                    return
            executor = processes_of(m.process.pid)["executor"]
            for _ in range(20):
                os.kill(executor, signal.SIGSTOP)
                os.kill(executor, signal.SIGCONT)
                m.run("busybox true")


def runners_end(place):
    """The host kills what runs user code, as when it has no memory left."""
    kill_under(place, 1, "runner")
    kill_under(place, 2, "runner")


def mappers_end(place):
    """... and what maps for it."""
    kill_under(place, 1, "mapper")
    kill_under(place, 2, "mapper")


if __name__ == "__main__":
    run_tests([
        ("user code natively on one vCPU", natively),
        ("user code natively on two vCPUs", natively_on_two),
        ("user code natively where it pays", as_it_pays),
        ("a machine outlives that its processes are stopped and continued", stopped_and_continued),
        ("user code outlives its runners", runners_end),
        ("user code outlives its mappers", mappers_end),
    ])
