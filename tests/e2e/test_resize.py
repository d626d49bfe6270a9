#!/usr/bin/python3
"""CPUs and memory that come and go while a guest runs.

usage: test_resize.py [WORD...]     only the tests whose names hold a word
"""

import os

from harness import Control, Machine, expect, guest, run_tests

MIB = 1 << 20
ENGINE = os.environ.get("CORBEL_ENGINE", "soft")


def start(place, *more):
    image = guest("busybox")
    return Machine(place, ["--engine", ENGINE, "--kernel", image.kernel, "--initrd", image.initrd,
                           "--cmdline", "console=ttyS0", "--control", place.home / "control",
                           *more])


def ready(m, after=0):
    m.wait_text("/ #", m.wait_text("corbel-busybox: ready", after))


def wait_size(watcher, **wanted):
    """Until an event says so."""
    while True:
        event = watcher.line()
        if event["event"] == "size" and all(event[key] == value for key, value in wanted.items()):
            return event


def online(m, first, last):
    """What udev does elsewhere. A CPU appears a moment after the event."""
    for cpu in range(first, last + 1):
        path = f"/sys/devices/system/cpu/cpu{cpu}/online"
        m.run(f"while ! [ -e {path} ]; do :; done; echo 1 > {path}")


def cpus(place):
    with start(place, "--memory", "128M", "--cpus", "1,max=4") as m:
        ready(m)
        with Control(place.home / "control") as control, \
                Control(place.home / "control") as watcher:
            watcher.expect_ok("watch")
            m.run("test $(nproc) = 1")
            for count in (0, 5, -1, "2", None):
                answer = control.ask("cpus", count=count)
                expect(not answer["ok"] and "1 to 4" in answer["error"], f"{count} CPUs: {answer}")
            # What is not there hears nothing: the guest can start no CPU by itself.
            m.run("! [ -e /sys/devices/system/cpu/cpu1 ]")
            for _ in range(2):
                expect(control.expect_ok("cpus", count=3)["cpus"] == 3, "they are not there")
                online(m, 1, 2)
                m.run("test $(nproc) = 3")
                m.run("taskset 4 sh -c 'i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done'")
                answer = control.expect_ok("cpus", count=1)
                expect(answer["cpus_wanted"] == 1, f"{answer}")
                wait_size(watcher, cpus=1, cpus_wanted=1, cpus_refused=False)
                m.run("while [ $(nproc) != 1 ]; do :; done")
            # What is asked for while the guest cannot look is so when it can.
            control.expect_ok("pause")
            control.expect_ok("cpus", count=4)
            control.expect_ok("resume")
            online(m, 1, 3)
            # Down and up again at once: whatever the guest did of it, four are left.
            control.expect_ok("cpus", count=2)
            control.expect_ok("cpus", count=4)
            m.run("while [ $(cat /sys/devices/system/cpu/present) != 0-3 ]; do :; done")
            # The next boot has what was wanted.
            control.expect_ok("cpus", count=2)
            mark = m.mark()
            m.type("reboot -f\n")
            ready(m, mark)
            m.run("test $(nproc) = 2")
            expect(control.expect_ok("status")["cpus"] == 2, "the host thinks otherwise")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def memory(place):
    with start(place, "--memory", "128M,max=1G", "--cpus", "2") as m:
        ready(m)
        with Control(place.home / "control") as control, \
                Control(place.home / "control") as watcher:
            watcher.expect_ok("watch")
            m.run("echo online_movable > /sys/devices/system/memory/auto_online_blocks")
            for size in (0, 15 * MIB, 1025 * MIB, -1, "512M"):
                answer = control.ask("memory", bytes=size)
                expect(not answer["ok"] and "16 to 1024" in answer["error"], f"{size}: {answer}")

            def move(size):
                control.expect_ok("memory", bytes=size)
                wait_size(watcher, memory_bytes=size)

            def resident():
                return control.expect_ok("statistics")["statistics"]["memory.resident_bytes"]

            total = "$(awk '/MemTotal/ {print $2}' /proc/meminfo)"
            m.run(f"total={total}")
            move(768 * MIB)
            m.run(f"test {total} = $((total + 640 * 1024))")
            m.run("mkdir -p /big; mount -t tmpfs -o size=600m none /big")
            m.run("dd if=/dev/urandom of=/big/file bs=1M count=500")
            full = resident()
            expect(full > 500 * MIB, f"the guest filled memory that is not there: {full}")
            # It cannot go while it is in use; what can does.
            control.expect_ok("memory", bytes=128 * MIB)
            while watcher.line().get("memory_bytes", 768 * MIB) == 768 * MIB:
                pass
            m.run("umount /big")
            wait_size(watcher, memory_bytes=128 * MIB)
            m.run(f"test {total} = $total")
            expect(resident() < full - 400 * MIB, f"the host did not get it back: {resident()}")
            move(96 * MIB)  # less than at the start: the balloon
            statistics = control.expect_ok("statistics")["statistics"]
            expect(statistics["balloon.actual_bytes"] == 32 * MIB, f"{statistics}")
            move(256 * MIB)
            mark = m.mark()
            m.type("reboot -f\n")
            ready(m, mark)
            wait_size(watcher, memory_bytes=256 * MIB)
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


if __name__ == "__main__":
    run_tests([
        ("CPUs come and go, also paused, and over a reset", cpus),
        ("memory comes and goes, and goes back to the host", memory),
    ])
