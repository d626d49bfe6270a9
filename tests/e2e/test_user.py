#!/usr/bin/python3
"""Programs of a guest whose user code runs natively, wherever it can: what they can do and see is
what it is on a computer of their own (user/user_work.c).

usage: test_user.py [WORD...]     only the tests whose names hold a word
"""

import os
import pathlib

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


if __name__ == "__main__":
    run_tests([
        ("user code natively on one vCPU", natively),
        ("user code natively on two vCPUs", natively_on_two),
        ("user code natively where it pays", as_it_pays),
    ])
