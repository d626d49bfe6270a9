#!/usr/bin/python3
"""Boots Debian's kernel with the busybox guest's initramfs on KVM, up to a shell that answers.

Not part of `make test`: where KVM has no hardware behind it and emulates each instruction, this
takes minutes, and the software engine executes what KVM's emulator cannot (`make test-kvm`).
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

from harness import BUILD, Machine, expect, guest, run_tests

PROGRESS_S = 10

# What takes an emulator longest and a shell does not need: checks and tables of tracing, type
# information for BPF, self-tests, and files in /sys and certificates for nobody.
NOT_NEEDED = ["ftrace_check_for_weak_functions", "trace_eval_init", "tracer_init_tracefs",
              "slab_sysfs_init", "blake2s_mod_init", "load_system_certificate_list",
              "cubictcp_register", "bpf_rstat_kfunc_init", "bpf_key_sig_kfuncs_init", "kfunc_init",
              "bpf_prog_test_run_init", "bpf_tcp_ca_kfunc_init", "inet6_init"]
# clearcpuid: XSAVE. A KVM that emulates shows the host's areas in CPUID leaf 0xd, not the guest's.
CMDLINE = " ".join(["console=ttyS0 earlycon=uart8250,io,0x3f8,115200 rdinit=/bin/sh",
                    "cryptomgr.notests clearcpuid=154 mitigations=off lsm= audit=0",
                    "initcall_blacklist=" + ",".join(NOT_NEEDED)])


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


def unpacked(kernel, directory):
    """The kernel in a bzImage as an ELF file, where it is packed by LZ4, as Debian's is.

    Unpacking is the larger half of what an emulator would have to do.
    """
    image = kernel.read_bytes()
    setup_bytes = ((image[0x1f1] or 4) + 1) * 512
    start, size = struct.unpack_from("<II", image, 0x248)
    packed = image[setup_bytes + start:setup_bytes + start + size - 4]
    if packed[:4] != bytes.fromhex("02214c18"):
        return kernel
    elf = directory / "vmlinux"
    with elf.open("wb") as out:
        subprocess.run(["lz4", "-dc"], input=packed, stdout=out, check=True)
    return elf


def show_progress(m, text):
    """Waits for text on the console, and says how far the guest is for whoever looks on."""
    begin = time.monotonic()
    found = False
    while not found:
        with m.changed:
            found = m.changed.wait_for(lambda: m.ended or text in m.console, PROGRESS_S)
            lines = m.raw.decode(errors="replace").split("\n")
        last = lines[-2].strip() if len(lines) > 1 else "(no output yet)"
        print(f"# {time.monotonic() - begin:4.0f} s: {last[:90]}", flush=True)


def boot_to_shell():
    image = guest("busybox")
    place = HostPlace()
    release = json.loads(image.dir.joinpath("image.json").read_text())["kernel"]
    kernel = unpacked(image.kernel, place.home)
    with Machine(place, ["--engine", "kvm", "--memory", "96M", "--kernel", kernel,
                         "--initrd", image.initrd, "--cmdline", CMDLINE]) as m:
        show_progress(m, b"/ # ")
        m.wait_text("/ # ")
        expect("engine kvm" in m.stderr.decode(), f"another engine runs\n{m.story()}")
        expect("sum=42\r\n" in m.run("echo sum=$((6*7))"), f"the shell does not count\n{m.story()}")
        expect(f"\n{release}\r\n" in m.run("busybox uname -r"), f"no program runs\n{m.story()}")
        m.type("busybox poweroff -f\n")
        expect(m.wait_exit() == 0, f"powering off gives a non-zero status\n{m.story()}")


if __name__ == "__main__":
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("1..0 # SKIP /dev/kvm cannot be opened here")
        sys.exit(0)
    run_tests([("a shell on KVM", lambda _place: boot_to_shell())])
