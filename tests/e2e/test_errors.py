#!/usr/bin/python3
"""What cannot work says so: one clear sentence, a non-zero status, no half-made files; and what the
guest does to itself follows the settings of its machine.
"""

import os
import resource
import signal
import subprocess

from harness import LIMIT_S, Machine, expect, guest, run_tests
from test_boot import ENGINE, arguments


def refuse(place, words, *mentions):
    """Runs the monitor, which must refuse in one sentence that holds each of the mentions."""
    before = sorted(os.listdir(place.home))
    result = subprocess.run(place.wrap([place.vmm, *words]), cwd=place.home, check=False,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    said = result.stderr
    lines = [line for line in said.splitlines() if line.strip()]
    expect(result.returncode in (1, 2), f"{words}: status {result.returncode}\n{said}")
    expect(len(lines) == 1, f"{words}: not one sentence but:\n{said}")
    for mention in mentions:
        expect(mention.lower() in lines[0].lower(), f"{words}: {mention!r} is not in:\n{said}")
    expect(sorted(os.listdir(place.home)) == before,
           f"{words} left files: {sorted(os.listdir(place.home))}")


def command(image, **changes):
    """The flags of a small machine, with some changed or, when None, left out."""
    flags = {"engine": ENGINE, "memory": "128M", "kernel": image.kernel, "initrd": image.initrd,
             "cmdline": "console=ttyS0", **changes}
    words = []
    for name, value in flags.items():
        if value is not None:
            words += ["--" + name.replace("_", "-"), str(value)]
    return words


def refuse_no_kernel(place):
    refuse(place, command(guest("busybox"), kernel=None), "kernel")


def refuse_missing_kernel(place):
    refuse(place, command(guest("busybox"), kernel="no-such-kernel"), "no-such-kernel")


def refuse_not_a_kernel(place):
    text = place.path / "text-file"
    text.write_text("this is no kernel\n" * 1000)
    refuse(place, command(guest("busybox"), kernel=text), "text-file", "kernel")
    empty = place.path / "empty-file"
    empty.write_text("")
    refuse(place, command(guest("busybox"), kernel=empty), "empty-file")
    refuse(place, command(guest("busybox"), kernel=place.path), str(place.path))


def refuse_missing_initrd(place):
    refuse(place, command(guest("busybox"), initrd="no-such-initrd"), "no-such-initrd")


def refuse_missing_disk(place):
    refuse(place, command(guest("busybox"), disk="no-such-disk.raw"), "no-such-disk.raw")
    refuse(place, command(guest("busybox"), disk=place.path), str(place.path))


def refuse_unreadable_disk(place):
    disk = place.path / "of-another-user.raw"
    disk.write_bytes(bytes(1 << 20))
    disk.chmod(0o000)
    refuse(place, command(guest("busybox"), disk=disk), "of-another-user.raw")


def refuse_memory(place):
    image = guest("busybox")
    refuse(place, command(image, memory="100T"), "memory")
    refuse(place, command(image, memory="1M"), "memory")
    refuse(place, command(image, memory="16M"), "memory")
    refuse(place, command(image, memory="lots"), "memory")


def refuse_flags(place):
    image = guest("busybox")
    refuse(place, command(image, cpus="0"), "cpus")
    refuse(place, command(image, cpus="1000"), "cpus")
    refuse(place, command(image, engine="steam"), "engine")
    refuse(place, command(image, net="user,forward=1:2:3"), "forward")
    refuse(place, command(image) + ["--no-such-flag"], "no-such-flag")
    refuse(place, command(image, serial="socket:" + "x" * 200), "serial")
    refuse(place, command(image, control="no/such/directory/c.sock"), "no/such/directory")


def refuse_taken_port(place):
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refuse(place, command(guest("busybox"), net=f"user,forward={port}:22"), str(port))


def refuse_second_start(place):
    image = guest("busybox")
    disk = place.home / "shared.raw"
    disk.write_bytes(bytes(8 << 20))
    place.own(disk)
    with Machine(place, command(image, disk=disk)) as first:
        first.wait_text("/ #")
        refuse(place, command(image, disk=disk), "shared.raw")
        expect("still" in first.run("echo st''ill"), "the first machine was disturbed")
        first.type("poweroff -f\n")
        expect(first.wait_exit() == 0, first.story())
    with Machine(place, command(image, disk=disk, cmdline="console=ttyS0 corbel.run=true")) as again:
        expect(again.wait_exit() == 0, "the disk is still taken after its machine ended\n"
               + again.story())
    disk.unlink()


def empty_disk(place, name, mib):
    disk = place.home / name
    with open(disk, "wb") as file:
        file.truncate(mib << 20)
    return place.own(disk)


def full_host_disk(place):
    """The host has no room for what the guest writes: the guest sees an I/O error and goes on."""
    disk = empty_disk(place, "full.raw", 256)

    def limit():
        # Guest memory is a file too, and must fit.
        resource.setrlimit(resource.RLIMIT_FSIZE, (160 << 20, 160 << 20))
        # As a shell leaves it; the monitor must not die of it.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    with Machine(place, command(guest("busybox"), disk=disk), preexec=limit) as m:
        m.wait_text("/ #")
        m.run("! dd if=/dev/zero of=/dev/vda bs=64k seek=3200 count=4 conv=fsync")
        m.run("dd if=/dev/zero of=/dev/vda bs=64k count=4 conv=fsync")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())
    disk.unlink()


def failing_sync(place):
    """What the host cannot make durable is an I/O error for whoever asked, and for nobody else."""
    disk = empty_disk(place, "broken.raw", 64)
    with Machine(place, command(guest("busybox"), disk=disk), container="failing-sync") as m:
        m.wait_text("/ #")
        m.run("dd if=/dev/zero of=/dev/vda bs=64k count=4 oflag=direct")
        m.run("! dd if=/dev/zero of=/dev/vda bs=64k count=4 conv=fsync")
        m.run("dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())
    disk.unlink()


def refuse_full_host(place):
    """Guest memory that the host's limits do not allow."""
    result = subprocess.run(place.wrap([place.vmm, *command(guest("busybox"), memory="512M")]),
                            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            timeout=LIMIT_S, preexec_fn=lambda: resource.setrlimit(
                                resource.RLIMIT_FSIZE, (64 << 20, 64 << 20)))
    expect(result.returncode == 1, f"status {result.returncode}\n{result.stderr}")
    expect(len(result.stderr.strip().splitlines()) == 1 and "memory" in result.stderr,
           f"not one sentence about memory:\n{result.stderr}")


def triple_fault(place, setting, cmdline="console=ttyS0 reboot=triple"):
    return Machine(place, command(guest("busybox"), on_crash=setting, cmdline=cmdline))


def triple_fault_exits(place):
    with triple_fault(place, "exit") as m:
        m.wait_text("/ #")
        m.type("reboot -f\n")
        expect(m.wait_exit() == 3, f"a triple fault does not give status 3\n{m.story()}")
        expect(m.stderr.strip(), "a triple fault is not told")


def triple_fault_restarts(place):
    with triple_fault(place, "restart") as m:
        m.wait_text("/ #")
        start = m.mark()
        m.type("reboot -f\n")
        m.wait_text("corbel-busybox: ready", after=start)
        m.wait_text("/ #", after=start)
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def reset_restarts(place):
    with Machine(place, command(guest("busybox"))) as m:
        m.wait_text("/ #")
        for _ in range(2):
            start = m.mark()
            m.type("reboot -f\n")
            m.wait_text("corbel-busybox: ready", after=start)
            m.wait_text("/ #", after=start)
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, m.story())


def reset_exits(place):
    with Machine(place, command(guest("busybox"), on_reset="exit")) as m:
        m.wait_text("/ #")
        m.type("reboot -f\n")
        expect(m.wait_exit() == 0, f"a reset with --on-reset exit does not give 0\n{m.story()}")


TESTS = [
    ("no kernel is refused", refuse_no_kernel),
    ("a missing kernel is refused", refuse_missing_kernel),
    ("a kernel that is none is refused", refuse_not_a_kernel),
    ("a missing initrd is refused", refuse_missing_initrd),
    ("a missing disk is refused", refuse_missing_disk),
    ("a disk of another user is refused", refuse_unreadable_disk),
    ("memory out of range is refused", refuse_memory),
    ("wrong flags are refused", refuse_flags),
    ("a taken port is refused", refuse_taken_port),
    ("a second start on one disk is refused", refuse_second_start),
    ("guest memory that the host refuses", refuse_full_host),
    ("a full host disk is an I/O error for the guest", full_host_disk),
    ("a sync that fails on the host fails in the guest", failing_sync),
    ("a triple fault ends the machine", triple_fault_exits),
    ("a triple fault restarts the machine", triple_fault_restarts),
    ("a reset restarts the machine", reset_restarts),
    ("a reset ends the machine", reset_exits),
]

if __name__ == "__main__":
    run_tests(TESTS)
