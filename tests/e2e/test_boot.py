#!/usr/bin/python3
"""Boots the busybox guest and the real Debian as an ordinary user without any capability, plainly
and under the system call filter of a container, with one and with two vCPUs, and uses them.

usage: test_boot.py [WORD...]     only the tests whose names hold a word
"""

import os
import subprocess

from harness import Control, Machine, Ssh, expect, guest, run_tests, wait_greeting

# systemd gives its units more time than any host needs.
DEBIAN_CMDLINE = ("rw console=ttyS0 systemd.log_color=0 "
                  "systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900")
CONTROL = "control"

MIB = 1 << 20
ENGINE = os.environ.get("CORBEL_ENGINE", "soft")


def arguments(image, cpus, memory, cmdline, *more):
    return ["--engine", ENGINE, "--cpus", cpus, "--memory", memory, "--kernel", image.kernel,
            "--initrd", image.initrd, "--cmdline", cmdline, *more]


def boot_busybox(place, cpus, container):
    image = guest("busybox")
    disk = place.home / "small.raw"
    with open(disk, "wb") as file:
        file.truncate(64 << 20)
    place.own(disk)
    with Machine(place, arguments(image, cpus, "128M", "console=ttyS0", "--disk", disk,
                                  "--net", "user"), container) as m:
        m.wait_text("corbel-busybox: ready")
        m.wait_text("/ #")
        expect(f"\r\n{cpus}\r\n" in m.run("nproc"), f"the guest has not {cpus} CPUs\n{m.story()}")
        m.run("dd if=/dev/urandom of=/tmp/a bs=64k count=64 2>/dev/null")
        m.run("dd if=/tmp/a of=/dev/vda bs=64k seek=100 conv=fsync 2>/dev/null")
        m.run("dd if=/dev/vda of=/tmp/b bs=64k skip=100 count=64 iflag=direct 2>/dev/null")
        m.run("cmp /tmp/a /tmp/b")
        m.network_up()
        m.run("ping -c 2 -W 600 10.0.2.2")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, f"powering off gives a non-zero status\n{m.story()}")
    with open(disk, "rb") as file:
        file.seek(100 * 65536)
        expect(any(file.read(65536)), "what the guest wrote is not in the disk file")


def start_debian(place, cpus, container):
    image = guest("debian")
    disk = place.disk(image.disk, "debian.raw")
    return Machine(place, arguments(image, cpus, "512M", f"{image.root} {DEBIAN_CMDLINE}", "--disk",
                                    disk, "--net", "user,forward=0:22", "--control", CONTROL), container)


def wait_debian(m, place, after=0):
    """Until the login prompt and the ssh server are there: a way in."""
    m.wait_text("login:", after)
    with Control(place.home / CONTROL) as control:
        port = control.expect_ok("status")["forwards"][0]["host_port"]
    wait_greeting(port, m)
    return Ssh(guest("debian"), port, m)


def use_debian(ssh, cpus):
    expect("Linux debian" in ssh.run("uname -a"), "uname does not name the guest")
    expect(ssh.run("nproc").strip() == str(cpus), f"nproc is not {cpus}")
    state = ssh.start("systemctl is-system-running --wait; systemctl --failed --no-legend")
    expect(state.stdout.startswith("running"), f"systemd is not content:\n{state.stdout}")
    ssh.run("dd if=/dev/urandom of=/var/tmp/a bs=1M count=8 conv=fsync status=none && "
            "sha256sum </var/tmp/a >/var/tmp/sum && echo 3 >/proc/sys/vm/drop_caches && "
            "test \"$(sha256sum </var/tmp/a)\" = \"$(cat /var/tmp/sum)\"")
    ssh.run("ping -c 2 -W 600 10.0.2.2")
    ssh.run("test \"$(seq 100000 | sort -R | sort -n | sha256sum)\" = \"$(seq 100000 | sha256sum)\"")


def taken(path):
    return os.stat(path).st_blocks * 512


def expect_trim_to_shrink(ssh, path, directory):
    """What the guest deleted is given back to the host by fstrim; what it kept stays."""
    ssh.run(f"cd {directory} && dd if=/dev/urandom of=kept bs=1M count=4 status=none && "
            "sha256sum kept >kept.sum && fstrim . && touch a && sync")
    before = taken(path)
    ssh.run(f"dd if=/dev/urandom of={directory}/gone bs=1M count=32 conv=fsync status=none")
    full = taken(path)
    expect(full >= before + 30 * MIB, f"32 MiB of noise take {full - before} bytes more")
    ssh.run(f"cd {directory} && rm gone && sync && fstrim . && touch b && sync")
    after = taken(path)
    expect(after <= before + 2 * MIB, f"{path} took {before}, then {full}, and {after} when trimmed")
    ssh.run(f"cd {directory} && echo 3 >/proc/sys/vm/drop_caches && sha256sum -c kept.sum")


def trim_disks(place, ssh):
    """The root in a raw file, and a qcow2 disk that is plugged in."""
    expect_trim_to_shrink(ssh, place.home / "debian.raw", "/var/tmp")
    path = place.home / "trim.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "256M"], check=True)
    with Control(place.home / CONTROL) as control:
        control.expect_ok("disk-add", disk=f"{place.own(path)},id=trim,serial=trim,format=qcow2")
    ssh.run("udevadm wait /dev/disk/by-id/virtio-trim && mkdir /var/tmp/trim && "
            "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/disk/by-id/virtio-trim && "
            "mount /dev/disk/by-id/virtio-trim /var/tmp/trim")
    expect_trim_to_shrink(ssh, path, "/var/tmp/trim")


def boot_debian(place, cpus, container, reboot, trim=False):
    with start_debian(place, cpus, container) as m:
        ssh = wait_debian(m, place)
        use_debian(ssh, cpus)
        if trim:
            trim_disks(place, ssh)
        if reboot:
            ssh.run("touch /var/tmp/before")
            start = m.mark()
            ssh.start("systemctl reboot")
            wait_debian(m, place, start)
            ssh.run("test -e /var/tmp/before && sha256sum </var/tmp/a | cmp - /var/tmp/sum")
        ssh.start("systemctl poweroff")
        expect(m.wait_exit() == 0, f"powering off gives a non-zero status\n{m.story()}")
    if trim:
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", place.home / "trim.qcow2"],
                       check=True)
    (place.home / "debian.raw").unlink()


TESTS = [
    ("busybox, 1 vCPU, ordinary user", lambda p: boot_busybox(p, 1, False)),
    ("busybox, 2 vCPUs, ordinary user", lambda p: boot_busybox(p, 2, False)),
    ("busybox, 2 vCPUs, container filter", lambda p: boot_busybox(p, 2, True)),
    ("debian, 1 vCPU, ordinary user, reboot", lambda p: boot_debian(p, 1, False, True)),
    ("debian, 2 vCPUs, ordinary user, fstrim", lambda p: boot_debian(p, 2, False, False, True)),
    ("debian, 2 vCPUs, container filter", lambda p: boot_debian(p, 2, True, False)),
]

if __name__ == "__main__":
    run_tests(TESTS)
