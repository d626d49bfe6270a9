#!/usr/bin/python3
"""Disks as a busybox guest sees them: their options, limits, sizes, and what a full host does.

usage: test_disks.py [WORD...]     only the tests whose names hold a word
"""

import contextlib
import hashlib
import json
import os
import random
import re
import socket
import subprocess

from harness import Machine, expect, guest, run_tests
from test_cli import User

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")
MIB = 1 << 20


class Control:
    """A connection to the control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile()

    def ask(self, command, **more):
        self.socket.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "ok" in answer:
                return answer

    def must(self, command, **more):
        answer = self.ask(command, **more)
        expect(answer["ok"], f"{command} {more}: {answer}")
        return answer

    def wait_event(self, is_wanted):
        """Waits for an event line; "watch" comes first."""
        while True:
            line = json.loads(self.lines.readline())
            if "event" in line and is_wanted(line):
                return line

    def disk(self, name):
        return next(d for d in self.must("disks")["disks"] if d["id"] == name)


def make_disk(place, name, size, content=b""):
    path = place.home / name
    path.write_bytes(content)
    os.truncate(path, size)
    return place.own(path)


def start(place, disks, container=False):
    image = guest("busybox")
    words = [word for disk in disks for word in ("--disk", disk)]
    m = Machine(place, ["--engine", ENGINE, "--memory", "128M", "--kernel", image.kernel,
                        "--initrd", image.initrd, "--cmdline", "console=ttyS0",
                        "--control", place.home / "control", "--cpus", "2", *words],
                container=container)
    return m


def ready(m):
    m.wait_text("/ #", m.wait_text("corbel-busybox: ready"))


def options(place):
    content = os.urandom(8 * MIB)
    one = make_disk(place, "one.raw", 32 * MIB, content)
    two = make_disk(place, "two,x.raw", 32 * MIB, content)
    with start(place, [f"{one},serial=first-disk,queues=2,io-threads=2,id=one,aio=threads",
                       f"{two},cache=none,id=two,bps=512M,iops=100000"]) as m:
        ready(m)
        control = Control(place.home / "control")
        expect(control.disk("one")["aio"] == "threads", "threads were asked for")
        expect("first-disk" in m.run("cat /sys/block/vda/serial"), "no serial number")
        m.run("test $(ls /sys/block/vda/mq | wc -l) = 2")
        digest = hashlib.sha256(content).hexdigest()
        for disk in ("vda", "vdb"):
            command = f"dd if=/dev/{disk} bs=1M count=8 iflag=direct 2>/dev/null | sha256sum"
            expect(digest in m.run(command), f"{disk} reads wrong")
        expect(control.disk("two")["limits"]["bps"] == 512 * MIB, "the limit is not shown")
        # A byte per second: the first read leaves a debt of days, and the next one waits until
        # the limit is lifted.
        control.must("disk-limit", disk="two", **{"bps": 1, "bps-burst": 1})
        mark = m.mark()
        m.type("dd if=/dev/vdb bs=1M count=8 iflag=direct 2>/dev/null | sha256sum\n")
        while control.disk("two")["throttled"] == 0:
            pass
        expect(control.disk("two")["read_bytes"] < 16 * MIB, "the limit let all bytes pass")
        control.must("disk-limit", disk="two")
        m.wait_text(digest, mark)
        before = control.disk("two")["throttled"]
        m.run("dd if=/dev/zero of=/dev/vdb bs=1M seek=8 count=8 oflag=direct conv=fsync")
        expect(control.disk("two")["throttled"] == before, "a limit that was lifted still holds")
        expect(control.disk("two")["flushes"] > 0, "fsync reached no disk")
        answer = control.ask("disk-limit", disk="three")
        expect(not answer["ok"] and "three" in answer["error"], f"{answer}")
        m.run("dd if=/dev/urandom of=/dev/vda bs=64k seek=200 count=16 oflag=direct conv=fsync")
        sums = m.run("dd if=/dev/vda bs=64k skip=200 count=16 2>/dev/null | sha256sum")
        with open(one, "rb") as file:
            file.seek(200 * 65536)
            expect(hashlib.sha256(file.read(MIB)).hexdigest() in sums, "the host has other bytes")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def resize(place):
    disk = make_disk(place, "grow.raw", 32 * MIB)
    with start(place, [f"{disk},id=grow"]) as m:
        ready(m)
        control = Control(place.home / "control")
        answer = control.ask("disk-resize", disk="grow", bytes=16 * MIB)
        expect(not answer["ok"] and "grow" in answer["error"], f"{answer}")
        control.must("disk-resize", disk="grow", bytes=48 * MIB)
        m.run(f"while [ $(cat /sys/block/vda/size) != {48 * MIB // 512} ]; do :; done")
        m.run("echo here | dd of=/dev/vda bs=1M seek=40 conv=fsync")
        with open(disk, "rb") as file:
            file.seek(40 * MIB)
            expect(file.read(4) == b"here", "what was written behind the old end is lost")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def hotplug(place):
    boot = make_disk(place, "boot.raw", 4 * MIB)
    content = os.urandom(4 * MIB)
    extra = make_disk(place, "extra.raw", 4 * MIB, content)
    digest = hashlib.sha256(content).hexdigest()
    with start(place, [f"{boot},id=boot"]) as m:
        ready(m)
        control, watch = Control(place.home / "control"), Control(place.home / "control")
        watch.must("watch")
        for round in range(2):
            control.must("disk-add", disk=f"{extra},id=extra,serial=plugged,queues=2")
            answer = control.ask("disk-add", disk=f"{boot},id=other")
            expect(not answer["ok"] and "in use" in answer["error"], f"a disk twice: {answer}")
            m.run("while ! [ -b /dev/vdb ]; do mdev -s; done")
            expect("plugged" in m.run("cat /sys/block/vdb/serial"), "another disk was plugged in")
            expect(digest in m.run("dd if=/dev/vdb bs=64k iflag=direct 2>/dev/null | sha256sum"),
                   "the disk reads wrong")
            m.run(f"echo round {round} | dd of=/dev/vdb bs=512 seek=8 conv=sync,fsync")
            with open(extra, "rb") as file:
                file.seek(4096)
                expect(file.read(7) == b"round %d" % round, "what was written is not on the host")
            control.must("disk-remove", disk="extra")
            watch.wait_event(lambda e: e["event"] == "disks" and
                             [d["id"] for d in e["disks"]] == ["boot"])
            m.run("while [ -e /sys/block/vdb ]; do :; done; rm -f /dev/vdb")
            extra.write_bytes(content)
        control.must("disk-add", disk=f"{extra},id=extra")
        m.run("while ! [ -b /dev/vdb ]; do mdev -s; done")
        # A guest may not eject what it was not asked for.
        m.run("for s in /sys/bus/pci/slots/*; do grep -q :01 $s/address && echo 0 > $s/power; done; "
              "sync")
        expect(len(control.must("disks")["disks"]) == 2, "the guest removed a disk by itself")
        control.must("disk-remove", disk="extra")
        watch.wait_event(lambda e: e["event"] == "disks" and len(e["disks"]) == 1)
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def job_is(state, name="vda"):
    def look(event):
        return event["event"] == "disks" and any(
            d["id"] == name and d.get("job", {}).get("state") == state for d in event["disks"])
    return look


def guest_digest(m):
    output = m.run("sync; dd if=/dev/vda bs=256k iflag=direct 2>/dev/null | sha256sum")
    return next(word for word in output.split() if len(word) == 64)


def live_jobs(place):
    base = make_disk(place, "live.raw", 24 * MIB, os.urandom(8 * MIB))
    overlay, mirror = place.home / "overlay.qcow2", place.home / "mirror.raw"
    with start(place, [f"{base},id=vda"]) as m:
        ready(m)
        control, watch = Control(place.home / "control"), Control(place.home / "control")
        watch.must("watch")
        m.run("dd if=/dev/urandom of=/dev/vda bs=64k seek=16 count=16 conv=fsync")
        before = guest_digest(m)
        answer = control.must("disk-snapshot", disk="vda", file=str(overlay))
        print(f"# requests waited {answer['hold_ns'] / 1e6:.1f} ms for a snapshot", flush=True)
        expect(answer["file"] == str(overlay) and answer["format"] == "qcow2", f"{answer}")
        watch.wait_event(lambda e: e["event"] == "disks" and e["disks"][0]["file"] == str(overlay))
        expect(guest_digest(m) == before, "the disk changed by a snapshot")
        m.run("dd if=/dev/urandom of=/dev/vda bs=4k seek=1000 count=2000 conv=fsync")
        after = guest_digest(m)
        expect(hashlib.sha256(base.read_bytes()).hexdigest() == before,
               "what was snapshotted was written to")
        expect(control.disk("vda")["file"] == str(overlay), "the snapshot's file is not in use")
        answer = control.ask("disk-snapshot", disk="vda", file=str(overlay))
        expect(not answer["ok"], "a snapshot over its own file")

        # Undone, and taken once more.
        control.must("disk-commit", disk="vda")
        watch.wait_event(job_is("done"))
        expect(control.disk("vda")["file"] == str(base), "the commit's file is not in use")
        expect(guest_digest(m) == after, "a commit changed the disk")
        overlay.unlink()
        m.run("dd if=/dev/urandom of=/dev/vda bs=4k seek=100 count=20 conv=fsync")
        after = guest_digest(m)
        expect(hashlib.sha256(base.read_bytes()).hexdigest() == after, "the image below is stale")
        control.must("disk-snapshot", disk="vda", file=str(overlay))

        # A byte per second never ends: what is cancelled leaves nothing behind.
        control.must("disk-mirror", disk="vda", file=str(mirror), speed=1)
        answer = control.ask("disk-resize", disk="vda", bytes=32 * MIB)
        expect(not answer["ok"] and "job" in answer["error"], f"resized under a job: {answer}")
        control.must("disk-job", disk="vda", action="pause")
        expect(control.disk("vda")["job"]["state"] == "paused", "the job is not paused")
        control.must("disk-job", disk="vda", action="cancel")
        watch.wait_event(job_is("cancelled"))
        expect(not mirror.exists(), "a cancelled mirror left its file")

        # The guest writes while the backing image is copied up, and while it is mirrored.
        m.type("dd if=/dev/urandom of=/dev/vda bs=16k seek=64 count=200 conv=fsync\n")
        control.must("disk-stream", disk="vda")
        watch.wait_event(job_is("done"))
        m.run("wait")
        expect(guest_digest(m) != after, "the guest's writes are lost")
        base.unlink()
        before = guest_digest(m)
        # It gets on by no more than a step or two at a byte per second, until that is changed.
        control.must("disk-mirror", disk="vda", file=str(mirror), speed=1)
        expect(control.disk("vda")["job"]["file"] == str(mirror), "the job does not name its file")
        m.run("dd if=/dev/urandom of=/dev/vda bs=16k seek=300 count=400 conv=fsync")
        for wrong in ({}, {"speed": -1}, {"speed": "fast"}):
            answer = control.ask("disk-job", disk="vda", action="speed", **wrong)
            expect(not answer["ok"] and "speed" in answer["error"], f"{wrong}: {answer}")
        job = control.disk("vda")["job"]
        expect(job["state"] == "running" and job["done_bytes"] < 2 * MIB < job["total_bytes"] and
               job["speed"] == 1, f"a byte per second: {job}")
        control.must("disk-job", disk="vda", action="speed", speed=2 ** 40)
        expect(control.disk("vda")["job"]["speed"] == 2 ** 40, "the new speed is not told")
        event = watch.wait_event(job_is("done"))
        expect(event["disks"][0]["file"] == str(mirror), f"the event names another file: {event}")
        expect(control.disk("vda")["file"] == str(mirror), "the mirror is not in use")
        expect(guest_digest(m) != before, "the guest's writes are lost")
        digest = guest_digest(m)
        expect(hashlib.sha256(mirror.read_bytes()).hexdigest() == digest,
               "the mirror differs from what the guest sees")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())
    # The chain that was left is whole and stands alone.
    check = subprocess.run(["qemu-img", "check", str(overlay)], check=False,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    expect(check.returncode == 0, f"the streamed image: {check.stdout}")
    info = subprocess.run(["qemu-img", "info", str(overlay)], check=True, stdout=subprocess.PIPE)
    expect(b"backing file" not in info.stdout, f"the streamed image needs another: {info.stdout}")
    with start(place, [f"{overlay},id=vda,format=qcow2,ro"]) as m:
        ready(m)
        expect(guest_digest(m), "the streamed image cannot be read alone")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())
    # Starting with it would lose what was written since the mirror.
    expect_stale(place, f"{overlay},format=qcow2", mirror)
    mirror.unlink()
    with start(place, [f"{overlay},id=vda,format=qcow2"]) as m:
        ready(m)
        expect(b"not there any more" in m.stderr, f"no word of the newer file: {m.stderr}")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def expect_stale(place, disk, newer):
    with start(place, [disk]) as m:
        expect(m.wait_exit() != 0, "a machine starts with a stale disk")
        expect(str(newer).encode() in m.stderr, f"it does not say where the disk is: {m.stderr}")


def earlier_commit(place):
    """What an earlier run put on top goes into the image below while the guest runs."""
    for form in ("raw", "qcow2"):
        base, overlay = place.home / f"below.{form}", place.home / f"above-{form}.qcow2"
        source = make_disk(place, "source.raw", 24 * MIB, os.urandom(6 * MIB))
        for words in (["convert", "-O", form, source, base],
                      ["create", "-q", "-f", "qcow2", "-b", base, "-F", form, overlay]):
            subprocess.run(["qemu-img", *map(str, words)], check=True)
        for path in (base, overlay):
            place.own(path)
        disk = f"{overlay},id=vda,format=qcow2,backing-dir={place.home}"
        with start(place, [disk]) as m:
            ready(m)
            m.run("dd if=/dev/urandom of=/dev/vda bs=64k seek=40 count=200 conv=fsync")
            before = guest_digest(m)
            m.type("poweroff -f\n")
            expect(m.wait_exit() == 0, m.story())
        with start(place, [disk]) as m:
            ready(m)
            control, watch = Control(place.home / "control"), Control(place.home / "control")
            watch.must("watch")
            m.type("dd if=/dev/urandom of=/dev/vda bs=16k seek=700 count=300 conv=fsync\n")
            control.must("disk-commit", disk="vda")
            watch.wait_event(job_is("done"))
            m.run("wait")
            expect(control.disk("vda")["file"] == str(base), "the image below is not in use")
            expect(guest_digest(m) != before, "the guest's writes are lost")
            after = guest_digest(m)
            m.type("poweroff -f\n")
            expect(m.wait_exit() == 0, m.story())
        expect_stale(place, disk, base)
        raw = subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", str(base),
                              str(source)], check=True) and source.read_bytes()
        expect(hashlib.sha256(raw).hexdigest() == after, "the image below holds something else")


def into_volume(place):
    """A running machine's disk moves into a volume of a pool."""
    source = make_disk(place, "move.raw", 24 * MIB, os.urandom(8 * MIB))
    with User(place) as user:
        user.run("pool-volume", "create", "data", "24M")
        volume = json.loads(user.run("pool-volume", "show", "data", "--json")[0])["path"]
        user.run("pool-volume", "create", "short", "16M")
        short = json.loads(user.run("pool-volume", "show", "short", "--json")[0])["path"]
        with start(place, [f"{source},id=vda"]) as m:
            ready(m)
            control, watch = Control(place.home / "control"), Control(place.home / "control")
            watch.must("watch")
            target = {"disk": "vda", "file": volume, "format": "qcow2", "existing": True}
            answer = control.ask("disk-mirror", **{**target, "file": short})
            expect(not answer["ok"] and str(24 * MIB) in answer["error"], f"too short: {answer}")
            # Half a copy goes away again, or the next would be refused.
            control.must("disk-mirror", **target, speed=1)
            m.run("dd if=/dev/urandom of=/dev/vda bs=16k seek=600 count=100 conv=fsync")
            control.must("disk-job", disk="vda", action="cancel")
            watch.wait_event(job_is("cancelled"))
            m.type("dd if=/dev/urandom of=/dev/vda bs=16k seek=64 count=400 conv=fsync\n")
            control.must("disk-mirror", **target)
            event = watch.wait_event(job_is("done"))
            expect(event["disks"][0]["file"] == volume, f"the disk is not in the volume: {event}")
            m.run("wait")
            _, err = user.run("pool-volume", "delete", "data", status=4)
            expect("in use" in err, f"a volume in use: {err}")
            m.run("echo moved | dd of=/dev/vda bs=512 seek=40000 conv=sync,fsync")
            digest = guest_digest(m)
            m.type("poweroff -f\n")
            expect(m.wait_exit() == 0, m.story())
        expect_stale(place, str(source), volume)
        user.run("pool-volume", "snapshot", "create", "data", "moved")
        head = json.loads(user.run("pool-volume", "show", "data", "--json")[0])["path"]
        with start(place, [f"{head},id=vda,format=qcow2,backing-dir={os.path.dirname(head)}"]) as m:
            ready(m)
            expect(guest_digest(m) == digest, "the volume holds something else")
            control = Control(place.home / "control")
            answer = control.ask("disk-mirror", disk="vda", file=volume, format="qcow2",
                                 existing=True)
            expect(not answer["ok"], "a mirror into what is in use")
            m.type("poweroff -f\n")
            expect(m.wait_exit() == 0, m.story())


def refused(user, *words):
    """Neither a disk nor a volume may be built on: why."""
    return user.run(*words, status=1)[1]


def half_copies(place):
    """A mirror that kill -9 ends leaves a file, or a volume, that nobody takes for a disk."""
    source = make_disk(place, "half.raw", 24 * MIB, os.urandom(8 * MIB))
    with User(place) as user:
        user.run("pool-volume", "create", "data", "24M")
        volume = json.loads(user.run("pool-volume", "show", "data", "--json")[0])["path"]
        plain = os.path.join(user.home, "half.raw")
        for target in ({"file": volume, "format": "qcow2", "existing": True}, {"file": plain}):
            with start(place, [f"{source},id=vda"]) as m:
                ready(m)
                control = Control(place.home / "control")
                control.must("disk-mirror", disk="vda", speed=1, **target)
                m.process.kill()
                m.wait_exit()
        for path, form in ((volume, "qcow2"), (plain, "raw")):
            info = json.loads(user.run("image", "info", path, "--json")[0])
            expect(info["state"] == "unfinished", info)
            for words in (("resize", path, "+1M"), ("convert", path, f"{user.home}/x.raw"),
                          ("clone", path, f"{user.home}/x.qcow2")):
                expect("never finished" in refused(user, "image", *words), words)
            with start(place, [f"{path},format={form}"]) as m:
                expect(m.wait_exit() != 0, "a machine starts with half a copy")
                expect(b"never finished" in m.stderr, f"it does not say why: {m.stderr}")
        rows = json.loads(user.run("pool-volume", "list", "--json")[0])
        expect([r["state"] for r in rows] == ["unfinished"], rows)
        expect("unfinished" in user.run("pool-volume", "list")[0], "the list for people hides it")
        expect("unfinished" in user.run("pool-volume", "show", "data")[0], "show hides it")
        for words in (("snapshot", "create", "data", "s"), ("clone", "data", "b"),
                      ("resize", "data", "+1M")):
            expect("interrupted" in refused(user, "pool-volume", *words), words)
        # The next mirror empties it first.
        with start(place, [f"{source},id=vda"]) as m:
            ready(m)
            control, watch = Control(place.home / "control"), Control(place.home / "control")
            watch.must("watch")
            control.must("disk-mirror", disk="vda", file=volume, format="qcow2", existing=True)
            watch.wait_event(job_is("done"))
            m.type("poweroff -f\n")
            expect(m.wait_exit() == 0, m.story())
        expect(json.loads(user.run("pool-volume", "show", "data", "--json")[0])["state"] == "current",
               "the volume is still no disk")
        user.run("image", "compare", str(source), volume)
        # The file before is stale by now, and the tools know it.
        info = json.loads(user.run("image", "info", str(source), "--json")[0])
        expect(info["state"] == "stale" and info["continued_in"] == volume and
               info["continued_format"] == "qcow2", info)
        expect(volume in user.run("image", "info", str(source))[0], "info for people hides it")
        expect(volume in refused(user, "image", "resize", str(source), "+1M"), "resized")
        _, err = user.run("image", "convert", str(source), f"{user.home}/x.raw")
        expect(volume in err, f"a stale disk is copied without a word: {err}")
        # A volume that a machine's disk left is stale, too.
        with start(place, [f"{volume},id=vda,format=qcow2"]) as m:
            ready(m)
            control, watch = Control(place.home / "control"), Control(place.home / "control")
            watch.must("watch")
            control.must("disk-mirror", disk="vda", file=f"{user.home}/away.qcow2", format="qcow2")
            watch.wait_event(job_is("done"))
            m.type("poweroff -f\n")
            expect(m.wait_exit() == 0, m.story())
        row = json.loads(user.run("pool-volume", "show", "data", "--json")[0])
        expect(row["state"] == "stale" and row["continued_in"].endswith("away.qcow2"), row)
        expect("away.qcow2" in refused(user, "pool-volume", "snapshot", "create", "data", "s"), "built on")
        expect("away.qcow2" in refused(user, "image", "snapshot", "create", volume, "s"), "built on")
        user.run("pool-volume", "delete", "data")
        os.unlink(plain)


# Prints wrote-N. when write number N is durable: N at sector 97 * (N mod 64).
WRITER = ("i=0; while :; do i=$((i+1)); printf %08d $i | dd of=/dev/vda bs=512 "
          "seek=$((i%64*97)) conv=sync,fsync,notrunc 2>/dev/null; echo wrote-$i.; done\n")


def kill_during(place, command, more, wait_more):
    """The file that the disk ended in, after a kill -9 of the monitor amid the command."""
    noise = random.Random(command)
    base, overlay = place.home / "killed.raw", place.home / "killed.qcow2"
    for path in (place.home / "next", base, overlay):
        path.unlink(missing_ok=True)
    make_disk(place, base.name, 24 * MIB, noise.randbytes(20 * MIB))
    disk, form = base, "raw"
    if command in ("disk-stream", "disk-commit"):
        disk, form = overlay, "qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay],
                       check=True)
        place.own(overlay)
    with start(place, [f"{disk},id=vda,format={form},backing-dir={place.home}"]) as m:
        ready(m)
        control = Control(place.home / "control")
        m.type(WRITER)
        m.wait_text("wrote-70.")
        control.must(command, disk="vda", **more)
        m.wait_text(f"wrote-{70 + wait_more}.")
        m.process.kill()
        m.wait_exit()
        done = max(map(int, re.findall(rb"wrote-(\d+)\.", m.console)))
    with contextlib.suppress(OSError):
        mark = os.getxattr(disk, "user.corbel.continued-in").decode()
        form, path = mark.split(":", 1)
        expect_stale(place, f"{disk},format=qcow2" if disk == overlay else str(disk), path)
        disk = path
    if form == "qcow2":
        check = subprocess.run(["qemu-img", "check", "-q", "-f", form, str(disk)], check=False)
        expect(check.returncode in (0, 3), f"{command}: the image is corrupt")
    content = place.home / "content"
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", str(disk), content], check=True)
    data = content.read_bytes()
    for number in range(done - 63, done + 1):
        at = number % 64 * 97 * 512
        text = data[at:at + 8]
        expect(text.isdigit() and int(text) % 64 == number % 64 and int(text) >= number,
               f"{command}: write {number} is lost; there is {text}")
    return disk


def killed(place):
    """kill -9 of the monitor amid each live operation: no write that the guest flushed is lost."""
    for command, more in (("disk-snapshot", {"file": str(place.home / "next")}),
                          ("disk-mirror", {"file": str(place.home / "next"), "format": "qcow2"}),
                          ("disk-mirror", {"file": str(place.home / "next"), "speed": 8 * MIB}),
                          ("disk-stream", {"speed": 8 * MIB}), ("disk-commit", {"speed": 1}),
                          ("disk-commit", {}), ("disk-resize", {"bytes": 32 * MIB})):
        disk = kill_during(place, command, more, random.randrange(20))
        print(f"# {command}: the disk was in {os.path.basename(disk)}", flush=True)


def limit_files(place, m, size):
    """As the monitor's own user, who may do so."""
    subprocess.run(place.wrap(["prlimit", f"--pid={m.process.pid}", f"--fsize={size}:"]),
                   check=True, stdin=subprocess.DEVNULL)


def full_host(place):
    """A file size limit stands for a full disk: raised, everything goes on."""
    disk = make_disk(place, "full.raw", 64 * MIB)
    with start(place, [f"{disk},id=full,on-error=pause"]) as m:
        ready(m)
        limit_files(place, m, 16 * MIB)
        control = Control(place.home / "control")
        control.must("watch")
        mark = m.mark()
        m.type("dd if=/dev/urandom of=/dev/vda bs=1M count=32 oflag=direct && echo all'-'written; "
               "dd if=/dev/vda bs=1M count=32 iflag=direct | sha256sum\n")
        event = control.wait_event(lambda e: e["state"] == "paused")
        expect("full" in event.get("reason", ""), f"paused without a reason: {event}")
        expect("waits_because" in control.disk("full"), "the disk does not say why it waits")
        # Still full: pauses again.
        control.must("resume")
        control.wait_event(lambda e: e["state"] == "paused")
        limit_files(place, m, "unlimited")
        control.must("resume")
        m.wait_text("all-written", mark)
        with open(disk, "rb") as file:
            digest = hashlib.sha256(file.read(32 * MIB)).hexdigest()
        m.wait_text(digest, mark)
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def reported(place):
    """Without on-error=pause the guest gets the error, and lives."""
    disk = make_disk(place, "report.raw", 64 * MIB)
    with start(place, [f"{disk},id=report"]) as m:
        ready(m)
        limit_files(place, m, 16 * MIB)
        m.run("! dd if=/dev/zero of=/dev/vda bs=1M count=32 oflag=direct")
        control = Control(place.home / "control")
        expect(control.disk("report")["errors"] > 0, "no error was counted")
        # A mirror for which there is no room fails, and only that.
        m.run("dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct")
        before = guest_digest(m)
        limit_files(place, m, 4 * MIB)
        control.must("watch")
        target = place.home / "no-room.qcow2"
        control.must("disk-mirror", disk="report", file=str(target), format="qcow2")
        event = control.wait_event(job_is("failed", "report"))
        job = event["disks"][0]["job"]
        expect("space" in job["error"] or "large" in job["error"], f"no reason: {job}")
        expect(event["disks"][0]["file"] == str(disk) and not target.exists(), f"{event}")
        limit_files(place, m, "unlimited")
        m.run("dd if=/dev/urandom of=/dev/vda bs=1M seek=8 count=2 oflag=direct")
        expect(guest_digest(m) != before, "the guest's writes are lost")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def no_uring(place):
    """A container's filter refuses io_uring: threads do the work, and the log says so."""
    content = os.urandom(4 * MIB)
    disk = make_disk(place, "container.raw", 4 * MIB, content)
    with start(place, [f"{disk},cache=none,id=contained"], container=True) as m:
        ready(m)
        control = Control(place.home / "control")
        expect(control.disk("contained")["aio"] == "threads", "io_uring under a filter against it")
        digest = hashlib.sha256(content).hexdigest()
        expect(digest in m.run("dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum"),
               "the disk reads wrong")
        expect(b"io_uring is refused" in m.stderr, "the log does not say why threads are used")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


if __name__ == "__main__":
    run_tests([
        ("options, queues, serial numbers and limits do what they say", options),
        ("a disk grows under a running guest", resize),
        ("a disk comes and goes while the guest runs", hotplug),
        ("snapshot, stream and mirror under a running guest lose nothing", live_jobs),
        ("what an earlier run put on top is committed", earlier_commit),
        ("half a copy is never taken for a disk", half_copies),
        ("a running machine's disk moves into a volume of a pool", into_volume),
        ("a killed monitor loses no flushed write, whatever it was about", killed),
        ("a full host pauses the machine, and it goes on when there is room", full_host),
        ("a full host is an error to a guest that shall hear of it", reported),
        ("threads replace an io_uring that is refused", no_uring),
    ])
