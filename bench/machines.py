"""Machines for benchmarks: the contestants, and what a busybox guest needs to run more programs."""

import pathlib
import subprocess

from harness import BUILD, SOURCE, Machine, guest

CONTESTANTS = {
    "soft": [str(BUILD / "corbel-vmm"), "--engine", "soft"],
    "reference": [str(BUILD / "corbel-vmm"), "--engine", "reference"],
    "kvm": [str(BUILD / "corbel-vmm"), "--engine", "kvm"],
    # With every feature that TCG has, and with QEMU's default model, which is older and often faster.
    "qemu": [str(SOURCE / "tests/e2e/qemu-as-vmm")],
    "qemu64": ["/usr/bin/env", "QEMU_CPU=qemu64", str(SOURCE / "tests/e2e/qemu-as-vmm")],
}


class Plain:
    """Where a contestant's machine runs: as we are, in a directory of our own."""

    def __init__(self, command, home):
        self.vmm = command[0]
        self.words = command[1:]
        self.home = home

    def wrap(self, command):
        return [str(word) for word in (command[0], *self.words, *command[1:])]


class PlainMachine(Machine):
    """harness.Machine without the change of user."""

    def __init__(self, place, arguments):
        adapter = type("Place", (), {"vmm": place.vmm, "home": place.home,
                                     "wrap": staticmethod(lambda c, _=False: place.wrap(c))})
        super().__init__(adapter, arguments)


def make_overlay(directory, files):
    """An initrd: the busybox guest's, and files (path in the guest: path here) as a second cpio
    archive behind it."""
    tree = directory / "tree"
    names = set()
    for name, source in files.items():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(pathlib.Path(source).read_bytes())
        target.chmod(0o755)
        names |= {name, *(str(parent) for parent in pathlib.PurePath(name).parents)}
    archive = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], check=True,
                             input="".join(f"{name}\n" for name in sorted(names - {"."})).encode(),
                             cwd=tree, stdout=subprocess.PIPE).stdout
    target = directory / "initrd"
    base = guest("busybox").initrd.read_bytes()
    target.write_bytes(base + bytes(-len(base) % 4) + archive)
    return target
