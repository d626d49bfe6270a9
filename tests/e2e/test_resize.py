#!/usr/bin/python3
"""CPUs and memory that come and go while a guest runs.

usage: test_resize.py [WORD...]     only the tests whose names hold a word
"""

import os

import pathlib
import signal
import threading

from harness import Control, Machine, Ssh, expect, guest, run_tests, wait_greeting
from platform_rig import Platform

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
            m.run(f"while [ {total} != $((total + 640 * 1024)) ]; do :; done")
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
            m.run(f"while [ {total} != $total ]; do :; done")
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


class Running:
    """An instance of the platform's, as Ssh and wait_greeting() know a machine."""

    def __init__(self, platform, instance):
        self.platform, self.instance = platform, instance
        self.ended, self.changed = False, threading.Condition()

    def story(self):
        log = pathlib.Path(self.platform.home) / "corbeld/vm" / self.instance / "vmm.log"
        return log.read_text() if log.exists() else "".join(self.platform.said)


def debian(place):
    """Through the interface, with an ordinary Debian: nothing but udev brings things into use."""
    with Platform(place) as platform:
        platform.use_image("debian")
        answer = platform.ok("POST", "/v1/instances", {
            "name": "big", "image": "debian", "engine": ENGINE, "cpus": 1, "max_cpus": 3,
            "memory_mib": 512, "max_memory_mib": 2048})
        platform.finish(answer)
        path = f"/v1/instances/{answer['instance']['id']}"
        shown = platform.ok("GET", path)
        expect((shown["live_cpus"], shown["live_memory_mib"]) == (3, 2048), f"{shown}")
        running = Running(platform, shown["id"])
        ssh = Ssh(guest("debian"), shown["ssh_port"], running)
        wait_greeting(shown["ssh_port"], running)

        def change(**wanted):
            platform.finish(platform.ok("PATCH", path, wanted))
            return platform.ok("GET", path)

        def until(condition):
            ssh.run(f"while ! {{ {condition}; }}; do sleep 0.1; done")

        def total():
            return int(ssh.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))

        before = total()
        shown = change(cpus=3, memory_mib=1536)
        expect((shown["cpus_now"], shown["memory_now_mib"]) == (3, 1536), f"{shown}")
        until("test $(nproc) = 3")
        until(f"test $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -gt {before + 1000 * 1024}")
        expect(platform.ok("GET", "/v1/host")["cpus"]["used"] == 3, "admission does not know")
        platform.refused(409, "PATCH", path, {"max_cpus": 4}, code="conflict")
        platform.refused(400, "PATCH", path, {"cpus": 4}, field="max_cpus")
        expect(platform.ok("GET", path)["cpus"] == 3, "a refused change changed something")
        shown = change(cpus=2, memory_mib=512)
        expect((shown["cpus_now"], shown["memory_now_mib"]) == (2, 512), f"{shown}")
        until("test $(nproc) = 2")
        until(f"test $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) = {before}")
        # A type's sizes by one call; it is killed amid, and goes on with it.
        platform.ok("POST", f"{path}/resize", {"type": "medium"})
        platform.stop_daemon(signal.SIGKILL)
        platform.start_daemon()
        kind = platform.ok("GET", "/v1/types/medium")
        platform.settle()
        shown = platform.ok("GET", path)
        expect(shown["type"] == "medium" and shown["cpus_now"] == min(kind["cpus"], 3) and
               shown["memory_now_mib"] == min(kind["memory_mib"], 2048), f"{shown}")
        expect(shown.get("restart_needed", False) == (kind["memory_mib"] > 2048), f"{shown}")
        volumes(platform, path, ssh)


def volumes(platform, path, ssh):
    """A volume comes, goes and comes with what was written on it."""
    answer = platform.ok("POST", "/v1/volumes", {"name": "data", "size_gib": 1})
    platform.finish(answer)
    volume = answer["volume"]["id"]
    disk = f"/dev/disk/by-id/virtio-{volume[:20]}"

    def state():
        return platform.ok("GET", f"/v1/volumes/{volume}")["state"]

    for round in range(2):
        platform.finish(platform.ok("PATCH", path, {"volumes": ["data"]}))
        expect(state() == "in-use", state())
        ssh.run(f"udevadm settle; while ! [ -e {disk} ]; do sleep 0.1; done")
        if round == 0:
            platform.refused(409, "DELETE", f"/v1/volumes/{volume}", code="conflict")
            platform.finish(platform.ok("PATCH", f"/v1/volumes/{volume}", {"size_gib": 2}))
            expect(state() == "in-use", state())
            ssh.run(f"while [ $(blockdev --getsize64 {disk}) != {2 << 30} ]; do sleep 0.1; done")
            ssh.run(f"mkfs.ext4 -q {disk} && mount {disk} /mnt && echo kept > /mnt/file && umount /mnt")
        else:
            expect("kept" in ssh.run(f"mount {disk} /mnt && cat /mnt/file && umount /mnt"), "lost")
        platform.finish(platform.ok("PATCH", path, {"volumes": []}))
        expect(state() == "available", state())
        ssh.run(f"while [ -e {disk} ]; do sleep 0.1; done")


if __name__ == "__main__":
    run_tests([
        ("CPUs come and go, also paused, and over a reset", cpus),
        ("memory comes and goes, and goes back to the host", memory),
        ("a Debian gets CPUs, memory and volumes by the interface, and gives them back", debian),
    ])
