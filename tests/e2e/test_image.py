#!/usr/bin/python3
"""Builds the Debian image as an ordinary user without any capability, plainly and under a
container's filter, and boots what came out. Downloads packages; takes some minutes."""

from harness import expect, run_tests
from test_cli import ENGINE, User


def build_and_boot(place, container):
    with User(place) as user:
        user.container = container
        user.run("image", "build", "debian", "--mode", "fakechroot", "--size", "3G")
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


TESTS = [
    ("debian builds as an ordinary user and boots", lambda p: build_and_boot(p, False)),
    ("debian builds under a container's filter and boots", lambda p: build_and_boot(p, True)),
]

if __name__ == "__main__":
    run_tests(TESTS)
