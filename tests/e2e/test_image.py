#!/usr/bin/python3
"""Builds the Debian image as an ordinary user without any capability, plainly and under a
container's filter, and boots what came out. Downloads packages; takes some minutes."""

import json
import os
import pathlib
import subprocess

from harness import Machine, Ssh, expect, free_port, guest, run_tests, wait_greeting
from test_cli import ENGINE, User


BUILD = ("image", "build", "debian", "--mode", "fakechroot", "--size", "3G")


def build_again(user):
    """A second build takes the disk of the first, and gives it keys of its own."""
    image = pathlib.Path(user.home, ".local/share/corbel/images/debian")
    first_key = (image / "ssh_key").read_bytes()
    disk = next(pathlib.Path(user.home, "cache/corbel").glob("disk-*/disk.raw"))
    before = disk.stat()
    tools = pathlib.Path(user.home, "tools")
    tools.mkdir()
    for name in ("mmdebstrap", "apt-get", "dpkg", "dpkg-deb", "mke2fs"):
        (tools / name).write_text(f"#!/bin/sh\necho called {name} >&2\nexit 1\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{user.env['PATH']}"
    user.run(*BUILD, PATH=path)
    after = disk.stat()
    expect((after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns),
           "the cached disk was written to")
    expect((image / "ssh_key").read_bytes() != first_key, "two images share a key")
    # What the tools above are for, they are called for.
    _, err = user.run(*BUILD, "--no-cache", "--name", "anew", status=1, PATH=path)
    expect("called mmdebstrap" in err, err)


def build_and_boot(place, container):
    with User(place) as user:
        user.container = container
        user.run(*BUILD)
        if not container:
            build_again(user)
        out, _ = user.run("image", "show", "debian", "--json")
        expect('"has_disk": true' in out, out)
        user.run("run", "debian", "--engine", ENGINE, "--cpus", "2", "--detach")
        out, _ = user.run("ssh", "--wait", "900", "debian", "--", "systemctl", "is-system-running",
                          "--wait")
        expect(out.strip() == "running", out)
        out, _ = user.run("ssh", "--", "find / -xdev -not -user root -not -user _apt "
                          "-not -user 'systemd-*' -not -user messagebus; dpkg --audit; "
                          "df --output=size -BM / | tail -n 1")
        lines = out.split()
        expect(len(lines) == 1, f"files of strange users, or broken packages:\n{out}")
        expect(2700 < int(lines[0].rstrip("M")) < 3072, f"the disk is not 3 GiB: {out}")
        user.run("stop", "--wait", "900", "debian")


def boot_from_volume(place):
    with User(place) as user:
        user.use_image("debian")
        user.run("pool-volume", "create", "web", "6G", "--image", "debian")
        user.run("pool-volume", "clone", "web", "copy")
        path = json.loads(user.run("pool-volume", "show", "copy", "--json")[0])["path"]
        debian = guest("debian")
        drives = [word for disk in (f"{user.home}/.local/share/corbel/images/debian/disk.raw,ro",
                                    f"{path},format=qcow2,backing-dir={os.path.dirname(path)}")
                  for word in ("--disk", disk)]
        port = free_port()
        machine = Machine(place, ["--kernel", debian.kernel, "--initrd", debian.initrd, "--cmdline",
                                  "root=/dev/vdb1 rw console=ttyS0 quiet cloud-init=disabled",
                                  "--memory", "1G", "--engine", ENGINE, *drives,
                                  "--net", f"user,forward={port}:22"])
        wait_greeting(port, machine)
        ssh = Ssh(debian, port, machine)
        out = ssh.run("findmnt -no SOURCE / && systemctl is-system-running --wait && "
                      "df --output=size -BM / | tail -n 1")
        source, state, size = out.split()
        expect(source == "/dev/vdb1" and state == "running", out)
        expect(5000 < int(size.rstrip("M")) < 6144, f"the root did not grow with the volume: {out}")
        _, err = user.run("pool-volume", "delete", "copy", status=4)
        expect("use" in err, err)
        ssh.start("poweroff")
        machine.wait_exit()
        user.run("pool-volume", "delete", "web")
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)


TESTS = [
    ("debian boots from a clone of a volume and grows with it", boot_from_volume),
    ("debian builds as an ordinary user, from the cache too, and boots", lambda p: build_and_boot(p, False)),
    ("debian builds under a container's filter and boots", lambda p: build_and_boot(p, True)),
]

if __name__ == "__main__":
    run_tests(TESTS)
