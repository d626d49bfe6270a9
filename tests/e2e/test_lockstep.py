#!/usr/bin/python3
"""Whole machines in lock step: each unit of translated code is executed by the reference as well,
and registers, flags, vector state and memory are compared; the first difference ends the machine.

usage: test_lockstep.py [WORD...]     only the tests whose names hold a word
"""

import contextlib
import time

from harness import LIMIT_S, Control, Machine, expect, guest, run_tests
from test_boot import DEBIAN_CMDLINE, arguments

# Lock step slows the TSC down, though not as much as instructions; clocks of chips it does not.
PATIENT = "nowatchdog rcupdate.rcu_cpu_stall_suppress=1 tsc=reliable"
SOME_INSTRUCTIONS = 100_000_000
SOME_MAPPINGS = 50


def counters(place):
    with Control(place.home / "control") as control:
        return control.expect_ok("stats")["statistics"]


def end(place, m):
    with Control(place.home / "control") as control:
        control.expect_ok("quit")
    expect(m.wait_exit() == 0, m.story())


def tell(text, seen, begin):
    print(f"# {text}: {seen['check_instructions']} instructions in {seen['check_units']} units compared, "
          f"{seen['check_retries']} again, {seen['check_reference_only']} on the reference alone, "
          f"{seen['mirror_maps']} mappings of kernel memory, {seen['interrupts']} interrupts, "
          f"{time.monotonic() - begin:.0f} s", flush=True)


def go_on_until(place, m, reached):
    """Asks for the counters until they satisfy, the machine ends, or all patience does."""
    begin = time.monotonic()
    seen = {}
    while not (seen and reached(seen)):
        expect(time.monotonic() - begin < LIMIT_S, f"{seen}\n{m.story()}")
        with m.changed:
            m.changed.wait(0.2)
            expect(not m.ended, m.story())
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # it is starting
            seen = counters(place)
    return seen


def begin_kernel(place):
    """A Linux kernel unpacks itself and begins, soon with its memory in the mirror."""
    image = guest("busybox")
    begin = time.monotonic()
    with Machine(place, arguments(image, 1, "128M", "console=ttyS0", "--engine-check", "--control",
                                  "control")) as m:
        seen = go_on_until(place, m, lambda seen: seen["check_instructions"] >= SOME_INSTRUCTIONS and
                           seen["mirror_maps"] >= SOME_MAPPINGS)
        tell("a kernel begins", seen, begin)
        end(place, m)


def boot_busybox(place):
    """From the first instruction to the power-off."""
    image = guest("busybox")
    begin = time.monotonic()
    with Machine(place, arguments(image, 1, "128M", f"console=ttyS0 {PATIENT}", "--engine-check",
                                  "--control", "control")) as m:
        m.wait_text("corbel-busybox: ready")
        m.wait_text("/ #")
        m.run("seq 1000 | sha256sum")
        tell("busybox", counters(place), begin)
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def boot_debian(place):
    """To the login prompt."""
    image = guest("debian")
    disk = place.disk(image.disk, "lockstep.raw")
    begin = time.monotonic()
    with Machine(place, arguments(image, 1, "512M", f"{image.root} {DEBIAN_CMDLINE} {PATIENT}",
                                  "--engine-check", "--disk", disk, "--net", "user",
                                  "--control", "control")) as m:
        m.wait_text("login:")
        tell("Debian to its login prompt", counters(place), begin)
        end(place, m)
    disk.unlink()


TESTS = [
    ("a kernel begins in lock step", begin_kernel),
    ("busybox in lock step", boot_busybox),
    ("Debian in lock step", boot_debian),
]

if __name__ == "__main__":
    run_tests(TESTS)
