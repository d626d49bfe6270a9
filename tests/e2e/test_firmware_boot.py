#!/usr/bin/python3
"""Boots the Debian disk as firmware does, under QEMU: GRUB from the first sector with SeaBIOS, the
signed loaders with OVMF. Then with a longer disk and instance data on a second one."""

import pathlib
import shutil
import subprocess
import tempfile

from harness import Machine, Ssh, expect, free_port, guest, run_tests, wait_greeting

OVMF = pathlib.Path("/usr/share/OVMF")


class PlaceOfQemu:
    """What a Machine asks of its place, with QEMU as the monitor."""

    def __init__(self, place):
        self.vmm = shutil.which("qemu-system-x86_64")
        self.home = place.home

    def wrap(self, words, _container):
        return [str(word) for word in words]


def start_qemu(place, *arguments):
    return Machine(PlaceOfQemu(place), ["-accel", "tcg", "-machine", "q35", "-m", "1G", "-nographic",
                                        "-no-reboot", *arguments])


def drive(path, *more):
    return ["-drive", ",".join(["if=virtio", "format=raw", f"file={path}", *more])]


def boot(place, firmware):
    image = guest("debian")
    port = free_port()
    disk = place.disk(image.disk, "firmware.raw")
    with open(disk, "r+b") as file:
        file.truncate(disk.stat().st_size + (1 << 30))
    with start_qemu(place, *firmware, *drive(disk), "-nic",
                    f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22") as m:
        m.wait_text("login:")
        wait_greeting(port, m)
        ssh = Ssh(image, port, m)
        expect("running" in ssh.start("systemctl is-system-running --wait").stdout, m.story())
        expect("PARTUUID=" in ssh.run("cat /proc/cmdline"), "not by the menu of the disk")
        size = int(ssh.run("df --output=size -BM / | tail -n 1").strip().rstrip("M"))
        expect(4500 < size < 5120, f"the root file system did not grow with the disk: {size} MiB")
        ssh.run("sfdisk -V /dev/vda")
        state = ssh.start("systemctl is-active cloud-init.service").stdout.strip()
        expect(state == "inactive", f"cloud-init ran without data: {state}")
        ssh.run("ls /boot/efi/EFI/debian/grub.cfg && update-grub 2>&1 && sync")
        ssh.start("systemctl poweroff")
        expect(m.wait_exit() == 0, m.story())
    # What update-grub wrote boots too. UEFI remembers where the disk was, so it has to be there again.
    with start_qemu(place, *firmware, *drive(disk), "-nic", "user,model=virtio-net-pci") as m:
        m.wait_text("login:")
    disk.unlink()


def boot_bios(place):
    boot(place, [])


def boot_uefi(place):
    with tempfile.TemporaryDirectory() as directory:
        variables = pathlib.Path(directory) / "vars.fd"
        shutil.copy(OVMF / "OVMF_VARS_4M.fd", variables)
        boot(place, ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd",
                     "-drive", f"if=pflash,format=raw,file={variables}"])


def use_instance_data(place):
    image = guest("debian")
    disk = place.disk(image.disk, "seeded.raw")
    seed = place.home / "seed.raw"
    with tempfile.TemporaryDirectory() as directory:
        for name, text in (("meta-data", "instance-id: one\nlocal-hostname: named-by-data\n"),
                           ("user-data", "#cloud-config\nruncmd:\n - echo data-was-read >/dev/ttyS0\n")):
            (pathlib.Path(directory) / name).write_text(text)
        with open(seed, "wb") as file:
            file.truncate(1 << 20)
        subprocess.run(["mformat", "-i", str(seed), "-v", "CIDATA", "::"], check=True)
        subprocess.run(["mcopy", "-i", str(seed), f"{directory}/meta-data", f"{directory}/user-data",
                        "::"], check=True)
    with start_qemu(place, *drive(disk), *drive(seed, "readonly=on"), "-nic",
                    "user,model=virtio-net-pci") as m:
        m.wait_text("data-was-read")
        m.wait_text("named-by-data")


TESTS = [
    ("debian boots from a BIOS, grows with its disk and renews its menu", boot_bios),
    ("debian boots from UEFI, grows with its disk and renews its menu", boot_uefi),
    ("debian reads instance data from a second disk", use_instance_data),
]

if __name__ == "__main__":
    run_tests(TESTS)
