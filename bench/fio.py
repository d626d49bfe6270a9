"""Debian's fio in the busybox guest, on the guest's virtual disk: rows of bench/run.

Both contestants run the same fio, libraries and kernel, on files of the same content made by the
same command. What a row counts is host time for each request as the guest's clock has it, so that a
ratio below 1 means more requests, and more bytes, in the same time.
"""

import pathlib
import re
import subprocess

from harness import guest
from machines import CONTESTANTS, Plain, PlainMachine, make_overlay

PROGRAM = pathlib.Path("/usr/bin/fio")
DISK_MIB = 256
# Under way in all, over the jobs; pattern: its options and the size of a request.
DEPTH = 32
PATTERNS = {
    "seq-write": ("write", 128 << 10),
    "seq-read": ("read", 128 << 10),
    "rand-write": ("randwrite", 4096),
    "rand-read": ("randread", 4096),
}
FIRST_READ_FIELD, FIRST_WRITE_FIELD = 5, 46  # KiB, KiB/s, requests/s, ms: of --minimal, version 3


def files_of_fio():
    """Path in the guest: path here; the program with all libraries that it is linked with."""
    text = subprocess.run(["ldd", str(PROGRAM)], check=True, stdout=subprocess.PIPE,
                          text=True).stdout
    paths = re.findall(r"(/\S+) \(0x", text)
    return {path.lstrip("/"): path for path in [str(PROGRAM), *paths]}


def make_disk(path, disk_format):
    """A disk full of data, so that no request has to make room."""
    subprocess.run(["qemu-img", "create", "-q", "-f", disk_format, str(path), f"{DISK_MIB}M"],
                   check=True)
    subprocess.run(["qemu-img", "bench", "-q", "-w", "-f", disk_format, "--pattern", "90", "-c",
                    str(DISK_MIB), "-s", str(1 << 20), str(path)], check=True,
                   stdout=subprocess.DEVNULL)


def options(words):
    """queues=4,format=qcow2 as a dictionary; words without a value are True."""
    return {key: value or True for key, _, value in
            (word.partition("=") for word in words.split(",") if word)}


class Runner:
    """A guest at its shell, with as many CPUs and fio jobs as its disk has queues."""

    def __init__(self, command, directory, initrd, disk_options, jobs):
        image = guest("busybox")
        disk = directory / f"fio-{id(self)}"
        make_disk(disk, options(disk_options).get("format", "raw"))
        self.jobs = jobs
        self.machine = PlainMachine(Plain(command, directory), [
            "--cpus", str(jobs), "--memory", "512M", "--kernel", image.kernel, "--initrd", initrd,
            "--cmdline", "console=ttyS0 quiet", "--disk", f"{disk},{disk_options}".rstrip(",")])
        self.machine.wait_text("/ #")

    def run(self, name):
        """Seconds for each request."""
        kind, block = PATTERNS[name]
        start = self.machine.mark()
        self.machine.type(
            f"/usr/bin/fio --name=f --filename=/dev/vda --direct=1 --ioengine=libaio --rw={kind} "
            f"--bs={block} --iodepth={DEPTH // self.jobs} --numjobs={self.jobs} --thread "
            f"--size={DISK_MIB // self.jobs}m --offset_increment={DISK_MIB // self.jobs}m "
            "--group_reporting --time_based --runtime=1 --norandommap --gtod_reduce=1 "
            f"--disk_util=0 --minimal; echo done-''{name}\n")
        self.machine.wait_text(f"\ndone-{name}", after=start)
        text = self.machine.console[start:].decode(errors="replace")
        match = re.search(r"^3;fio-\S*;f;0;0;\S+", text, re.MULTILINE)
        if match is None:
            raise SystemExit(f"bench: fio {name} failed:\n{text[-500:]}")
        words = match.group(0).split(";")
        field = FIRST_READ_FIELD if kind.endswith("read") else FIRST_WRITE_FIELD
        kib, ms = int(words[field]), int(words[field + 3])
        return ms / 1e3 / (kib * 1024 / block)

    def close(self):
        self.machine.type("poweroff -f\n")
        self.machine.wait_exit()
        self.machine.__exit__()


def run(args, table, directory):
    """Of --disk, and of --disk with four queues."""
    wanted = [(name, jobs) for jobs in (1, 4) for name in PATTERNS
              if args.wants("fio", f"fio-{name}-{jobs}")]
    names = [name for name in table.names if name in CONTESTANTS]
    if not wanted:
        return
    if not PROGRAM.exists():
        print(f"bench: no fio rows: {PROGRAM} is not installed")
        return
    initrd = make_overlay(directory, files_of_fio())
    for jobs in sorted({jobs for _, jobs in wanted}):
        words = ",".join(filter(None, [args.disk, f"queues={jobs}" if jobs > 1 else ""]))
        runners = {name: Runner(CONTESTANTS[name], directory, initrd, words, jobs)
                   for name in names}
        for name in [name for name, wanted_jobs in wanted if wanted_jobs == jobs]:
            samples = {}
            for pair in range(args.pairs):
                for who in names if pair % 2 == 0 else reversed(names):
                    samples.setdefault(who, []).append(runners[who].run(name))
            table.add("fio", f"fio-{name}-{jobs}", samples, "us", 1e6)
        for runner in runners.values():
            runner.close()
