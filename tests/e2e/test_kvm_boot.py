#!/usr/bin/python3
"""Boots Debian's kernel with the busybox guest's initramfs on KVM, up to a shell that answers.

Not part of `make test`: where KVM has no hardware behind it and emulates each instruction, this
takes many minutes, and the software engine executes what KVM's emulator cannot (`make test-kvm`).
"""

import os
import pathlib
import sys
import tempfile

from harness import BUILD, Machine, expect, guest, run_tests


class HostPlace:
    """The monitor as whoever runs the test: /dev/kvm belongs to a group that others are not in."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="corbel-kvm-")
        self.home = pathlib.Path(self.directory.name)
        self.vmm = BUILD / "corbel-vmm"

    @staticmethod
    def wrap(command, container=False):
        del container
        return [str(word) for word in command]


def boot_to_shell():
    image = guest("busybox")
    place = HostPlace()
    with Machine(place, ["--engine", "kvm", "--memory", "256M", "--kernel", image.kernel,
                         "--initrd", image.initrd, "--cmdline", "console=ttyS0 rdinit=/bin/sh"]) as m:
        m.wait_text("/ #")
        expect("sum=42\r\n" in m.run("echo sum=$((6*7))"), f"the shell does not count\n{m.story()}")
        expect("Linux" in m.run("busybox uname -a"), f"no program runs\n{m.story()}")
        m.type("busybox poweroff -f\n")
        expect(m.wait_exit() == 0, f"powering off gives a non-zero status\n{m.story()}")


if __name__ == "__main__":
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("1..0 # SKIP /dev/kvm cannot be opened here")
        sys.exit(0)
    run_tests([("a shell on KVM", lambda _place: boot_to_shell())])
