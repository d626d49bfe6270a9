#!/usr/bin/python3
"""Boots Debian to the login prompt and to ssh 20 times in a row, with 1 and with 2 vCPUs."""

import os

from harness import expect, run_tests
from test_boot import start_debian, wait_debian

BOOTS = int(os.environ.get("CORBEL_BOOTS", "20"))


def boot_once(place, cpus, container):
    with start_debian(place, cpus, container) as m:
        ssh = wait_debian(m, place)
        expect(ssh.run("nproc").strip() == str(cpus), f"nproc is not {cpus}")
        ssh.start("systemctl poweroff")
        expect(m.wait_exit() == 0, m.story())
    (place.home / "debian.raw").unlink()


# Every fourth boot runs under the container's filter.
TESTS = [(f"debian, {cpus} vCPU, boot {n} of {BOOTS}",
          lambda p, c=cpus, f=n % 4 == 0: boot_once(p, c, f))
         for cpus in (1, 2) for n in range(1, BOOTS + 1)]

if __name__ == "__main__":
    run_tests(TESTS)
