#!/usr/bin/python3
"""Boots Debian to the login prompt and to ssh 20 times in a row, with 1 and with 2 vCPUs."""

import os

from harness import Machine, Ssh, expect, free_port, guest, run_tests
from test_boot import DEBIAN_CMDLINE, arguments, wait_debian

BOOTS = int(os.environ.get("CORBEL_BOOTS", "20"))


def boot_once(place, cpus, container):
    image = guest("debian")
    port = free_port()
    disk = place.disk(image.disk, "debian.raw")
    with Machine(place, arguments(image, cpus, "512M", DEBIAN_CMDLINE, "--disk", disk,
                                  "--net", f"user,forward={port}:22"), container) as m:
        wait_debian(m, port)
        ssh = Ssh(image, port, m)
        expect(ssh.run("nproc").strip() == str(cpus), f"nproc is not {cpus}")
        ssh.start("systemctl poweroff")
        expect(m.wait_exit() == 0, m.story())
    disk.unlink()


# Every fourth boot runs under the container's filter.
TESTS = [(f"debian, {cpus} vCPU, boot {n} of {BOOTS}",
          lambda p, c=cpus, f=n % 4 == 0: boot_once(p, c, f))
         for cpus in (1, 2) for n in range(1, BOOTS + 1)]

if __name__ == "__main__":
    run_tests(TESTS)
