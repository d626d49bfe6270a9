#!/usr/bin/python3
"""Uses what Linux has that changes its own code while it runs, on Debian with one and with two vCPUs:
modules, probes, tracers, compiled BPF, static keys, perf, CPUs that go and come, kexec. Each is used
while known work runs, and counts must be those of the work.

usage: test_kernel.py [WORD...]     only the tests whose names hold a word
"""

import os
import pathlib
import re
import subprocess
import time
import typing

from harness import BUILD, LIMIT_S, Control, Machine, Ssh, expect, guest, run_tests, wait_greeting
from test_boot import DEBIAN_CMDLINE, arguments

PROGRAM = BUILD / "tests/e2e/kernel-work"
SEED = int(os.environ.get("CORBEL_SEED", "0") or 0) or int.from_bytes(os.urandom(4), "little")
TRACING = "/sys/kernel/tracing"
PROBED = "__x64_sys_sched_get_priority_min"  # a system call that nobody else makes
CALLS = 500
# The guest's complaints about slowness say nothing of the engine; all others must not come.
CMDLINE = f"{DEBIAN_CMDLINE} nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
# (A call trace alone is what the out-of-memory killer prints.)
TROUBLE = re.compile(r"\b(BUG|WARNING|Oops|general protection|kernel NULL|invalid opcode|"
                     r"hung task|test failed|failed test|kprobes: failed|ftrace failed)\b")
# The monitor's promise: what it holds beside the guest's memory, with all its processes.
OVERHEAD_KIB = 64 * 1024
FUNCTION = f"cd {TRACING}; set -e; W=/root/kernel-work; "


def expect_clean(log):
    bad = [line for line in log.splitlines() if TROUBLE.search(line)]
    expect(not bad, f"the guest's kernel complains:\n" + "\n".join(bad) + "\n" + log[-2000:])


class Session:
    """A Debian guest with the program for the tests in it, and a shell by ssh."""

    def __init__(self, place, cpus, kind="debian", memory="512M", factor=1):
        self.place, self.cpus, self.kind = place, cpus, kind
        self.factor = factor  # how much of everything
        image = guest(kind)
        self.disk = place.disk(image.disk, "kernel.raw")
        self.machine = Machine(place, arguments(
            image, cpus, memory, f"{image.root} {CMDLINE}", "--disk", self.disk,
            "--net", "user,forward=0:22", "--control", "control"))

    def __enter__(self):
        self.machine.__enter__()
        self.login(0)
        with open(PROGRAM, "rb") as program:
            subprocess.run(self.ssh.base + ["cat >/root/kernel-work && chmod +x /root/kernel-work"],
                           stdin=program, check=True)
        return self

    def __exit__(self, *error):
        self.machine.__exit__(*error)
        self.disk.unlink()

    def login(self, after):
        self.machine.wait_text("login:", after)
        with Control(self.place.home / "control") as control:
            port = control.expect_ok("status")["forwards"][0]["host_port"]
        wait_greeting(port, self.machine)
        self.ssh = Ssh(guest(self.kind), port, self.machine)

    def run(self, script):
        """A script in the guest's shell; its output. Its kernel must not complain meanwhile."""
        output = self.ssh.run(script)
        self.expect_no_trouble()
        return output

    def expect_no_trouble(self):
        expect_clean(self.ssh.run("dmesg"))

    def while_working(self, script, work):
        """Repeats the script until the work, which checks itself, has ended; how often."""
        output = self.run(f"{FUNCTION} $W {work} & pid=$!; rounds=0; "
                          f"while kill -0 $pid 2>/dev/null; do {script}; rounds=$((rounds + 1)); done; "
                          f"wait $pid; echo times=$rounds")
        return int(re.search(r"times=(\d+)", output).group(1))


def children(pid):
    text = "".join(path.read_text() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"))
    return [one for child in text.split() for one in (int(child), *children(int(child)))]


class Usage(typing.NamedTuple):
    """Of the monitor and the processes it started."""
    kib: int  # beside the guest's memory
    descriptors: int
    threads: int  # but for those that work for disks
    disk_workers: int  # made when there is work, up to a fixed number
    mappings: int  # of anything but the guest's memory
    guest_mappings: int  # in the process that has most; those of a space share them


def host_usage(pid):
    kib = descriptors = threads = disk_workers = mappings = most_of_guest = 0
    for one in (pid, *children(pid)):
        descriptors += len(os.listdir(f"/proc/{one}/fd"))
        names = [path.read_text().strip() for path in pathlib.Path(f"/proc/{one}/task").glob("*/comm")]
        threads += len(names)
        disk_workers += names.count("work/disk")
        is_guest, of_guest = False, 0
        for line in pathlib.Path(f"/proc/{one}/smaps").read_text().splitlines():
            words = line.split()
            if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
                is_guest = "guest-memory" in line
                of_guest += is_guest
                mappings += not is_guest
            elif words[0] == "Pss:" and not is_guest:
                kib += int(words[1])
        most_of_guest = max(most_of_guest, of_guest)
    return Usage(kib, descriptors, threads - disk_workers, disk_workers, mappings, most_of_guest)


def use_modules(s):
    """Modules take each other's places in memory, and work each time."""
    s.run(f"""set -e; for i in $(seq {3 * s.factor}); do
        modprobe dummy numdummies=1; ip link show dummy0 >/dev/null
        modprobe brd rd_nr=1 rd_size=2048
        head -c 1M /dev/urandom >/tmp/a; cat /tmp/a >/dev/ram0; head -c 1M /dev/ram0 | cmp - /tmp/a
        modprobe nls_utf8; modprobe libcrc32c; modprobe $([ $((i % 2)) = 0 ] && echo xor || echo ifb)
        test -e /sys/module/dummy -a -e /sys/module/brd
        modprobe -r dummy; modprobe -r ifb; modprobe -r nls_utf8; modprobe -r brd; modprobe -r xor
        ! test -e /sys/module/dummy; ! test -e /sys/module/brd; ! ip link show dummy0 2>/dev/null
        done""")


def use_crypto(s, modules):
    """The kernel's own tests of its vector code."""
    output = s.run(f"for module in {' '.join(modules)}; do modprobe $module || :; done; "
                   "cat /proc/crypto")
    results = re.findall(r"^selftest *: (\w+)$", output, re.MULTILINE)
    expect(len(results) > 20 and set(results) == {"passed"}, f"not all algorithms passed:\n{output}")


def profile(s, kind):
    """{probe: (hits, misses)}"""
    lines = s.run(f"cat {TRACING}/{kind}_profile").splitlines()
    return {words[-3]: (int(words[-2]), int(words[-1])) for words in map(str.split, lines)}


def use_kprobes(s):
    """A probe counts each call; probes at each instruction change no result."""
    s.run(f"""{FUNCTION}
        echo 'p:corbel/in {PROBED}' >kprobe_events
        echo 'r:corbel/out {PROBED} $retval' >>kprobe_events
        echo >trace; echo 1 >events/corbel/enable; $W calls {CALLS}; echo 0 >events/corbel/enable
        test $(grep -c 'in: ' trace) = {CALLS}; test $(grep -c 'out: .*arg1=0x1$' trace) = {CALLS}""")
    seen = profile(s, "kprobe")
    expect(seen == {"in": (CALLS, 0), "out": (CALLS, 0)}, f"{CALLS} calls, counted: {seen}")
    s.run(f"echo >{TRACING}/kprobe_events")
    reach = min(250, 50 * s.factor)
    for optimized in (0, 1):
        everywhere = f"""{FUNCTION} sysctl -q debug.kprobes-optimization={optimized}
            for function in {PROBED} vfs_read do_sys_openat2; do for at in $(seq 1 {reach}); do
            echo "p:corbel/$function$at $function+$at" >>kprobe_events || :; done 2>/dev/null; done
            grep -c . kprobe_events"""
        expect(int(s.run(everywhere).split()[-1]) > reach // 4, "hardly an instruction could be probed")
        expect(s.while_working("echo 1 >events/corbel/enable; echo 0 >events/corbel/enable",
                               f"processes {SEED} {s.factor}") > 0, "the work ended too early")
        s.run(f"{FUNCTION} echo 1 >events/corbel/enable; $W calls {CALLS}; "
              f"sha256sum $W >/tmp/a; echo 0 >events/corbel/enable; sha256sum $W | cmp - /tmp/a")
        seen = profile(s, "kprobe")
        first = min((int(name[len(PROBED):]), hits) for name, hits in seen.items()
                    if name.startswith(PROBED))
        expect(first[1][0] >= CALLS and first[1][1] == 0, f"{CALLS} calls, counted: {seen}")
        s.run(f"echo >{TRACING}/kprobe_events")


def instructions(symbol):
    """Where each instruction of a function of the program stands in its file."""
    text = subprocess.run(["objdump", "-d", f"--disassemble={symbol}", PROGRAM], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    base = re.search(r"([0-9a-f]+) .* __executable_start$",
                     subprocess.run(["nm", PROGRAM], check=True, stdout=subprocess.PIPE,
                                    text=True).stdout, re.MULTILINE)
    return [int(at, 16) - int(base.group(1), 16)
            for at in re.findall(r"^ *([0-9a-f]+):\t[^\t]*\t", text, re.MULTILINE)]


def use_uprobes(s):
    """Probes in a program: each instruction of a function is stepped over elsewhere."""
    places = instructions("probed_mix")
    expect(len(places) > 5, "the function has hardly an instruction")
    lines = [f"p:corbel/at{at} /root/kernel-work:{at:#x}" for at in places]
    lines.append(f"r:corbel/back /root/kernel-work:{places[0]:#x}")
    s.run(f"{FUNCTION} echo '{chr(10).join(lines)}' >uprobe_events; echo 1 >events/corbel/enable; "
          f"$W calls {CALLS}; echo 0 >events/corbel/enable")
    output = s.run(f"cat {TRACING}/uprobe_profile")
    seen = {words[-2]: int(words[-1]) for words in map(str.split, output.splitlines())}
    expect(seen[f"at{places[0]}"] == CALLS and seen["back"] == CALLS,
           f"{CALLS} calls, counted: {seen}")
    s.run(f"echo >{TRACING}/uprobe_events")


def use_tracers(s):
    """The function tracers patch each function of the kernel; they see each call."""
    for tracer in ("function", "function_graph"):
        s.run(f"{FUNCTION} echo {PROBED} >set_ftrace_filter; echo >trace; echo {tracer} >current_tracer; "
              f"$W calls {CALLS}; echo 0 >tracing_on; test $(grep -c {PROBED} trace) = {CALLS}; "
              f"echo nop >current_tracer; echo 1 >tracing_on; echo >set_ftrace_filter")
        expect(s.while_working(f"echo {tracer} >current_tracer; echo nop >current_tracer",
                               f"processes {SEED} {s.factor}") > 0, "the work ended too early")


def use_static_keys(s):
    """Tracepoints and scheduler statistics are jumps that are patched in and out."""
    event = "events/syscalls/sys_enter_sched_get_priority_min/enable"
    expect(s.while_working("sysctl -q kernel.sched_schedstats=1; echo 1 >events/sched/enable; "
                           "echo 1 >events/raw_syscalls/enable; sysctl -q kernel.sched_schedstats=0; "
                           "echo 0 >events/raw_syscalls/enable; echo 0 >events/sched/enable",
                           f"processes {SEED} {5 * s.factor}") > 0, "the work ended too early")
    s.run(f"{FUNCTION} echo >trace; echo 1 >{event}; $W calls {CALLS}; echo 0 >{event}; "
          f"test $(grep -c 'sys_sched_get_priority_min(' trace) = {CALLS}; "
          f"$W calls {CALLS}; test $(grep -c 'sys_sched_get_priority_min(' trace) = {CALLS}")


def use_bpf(s):
    """Random programs compute in the kernel's compiled code what a model computes."""
    programs = 20 * s.factor
    s.run(f"set -e; test $(sysctl -n net.core.bpf_jit_enable) = 1; /root/kernel-work ebpf {SEED} "
          f"{programs}; sysctl -q net.core.bpf_jit_harden=2; /root/kernel-work ebpf {SEED} {programs}; "
          f"/root/kernel-work filters {SEED} {programs}; sysctl -q net.core.bpf_jit_harden=0; "
          f"/root/kernel-work filters {SEED} {programs}")


def use_cpus(s):
    """The second CPU leaves and comes back while work runs."""
    if s.cpus == 1:
        return
    cpu = "/sys/devices/system/cpu/cpu1/online"
    expect(s.while_working(f"echo 0 >{cpu}; test $(nproc) = 1; echo 1 >{cpu}; test $(nproc) = 2",
                           f"processes {SEED} {5 * s.factor}") > 0, "the work ended too early")


def use_kexec(s):
    """A kernel starts another kernel, which may start another."""
    for number in range(1, 1 + min(s.factor, 2)):
        s.run("set -e; /root/kernel-work load /boot/vmlinuz-* /boot/initrd.img-* "
              f"\"$(sed 's/ corbel.started=.*//' /proc/cmdline) corbel.started={number}\"; "
              "test $(cat /sys/kernel/kexec_loaded) = 1")
        start = s.machine.mark()
        s.ssh.start("/root/kernel-work kexec")
        s.login(start)
        output = s.run("cat /proc/cmdline; nproc")
        expect(f"corbel.started={number}\n{s.cpus}\n" in output, f"another kernel runs:\n{output}")
        s.run(f"/root/kernel-work processes {SEED} 3")


def use_perf(s):
    s.run("/root/kernel-work perf 1000")


STEPS = [use_modules, use_bpf, use_perf, use_kprobes, use_uprobes, use_tracers, use_static_keys,
         use_cpus, use_kexec]


def expect_bounded(s, before):
    # Connections of ssh that have ended leave their descriptors when TCP lets them go.
    deadline = time.monotonic() + LIMIT_S
    while (after := host_usage(s.machine.process.pid))[1] > before[1] and \
            time.monotonic() < deadline:
        time.sleep(0.5)
    print(f"# {s.cpus} vCPU: {before[0]} -> {after[0]} KiB, {before[1]} -> {after[1]} descriptors",
          flush=True)
    expect(after[0] <= OVERHEAD_KIB and after[1] <= before[1],
           f"the monitor's (KiB, descriptors) went from {before} to {after}")


def use_features(place, cpus):
    print(f"# seed {SEED}", flush=True)
    with Session(place, cpus) as s:
        s.run(f"/root/kernel-work processes {SEED} 1")
        before = host_usage(s.machine.process.pid)
        for step in STEPS:
            begin = time.monotonic()
            step(s)
            print(f"# {step.__name__}, {cpus} vCPU: {time.monotonic() - begin:.1f} s", flush=True)
        expect_bounded(s, before)
        s.ssh.start("systemctl poweroff")
        expect(s.machine.wait_exit() == 0, s.machine.story())


TESTS = [
    ("kernel features, 1 vCPU", lambda p: use_features(p, 1)),
    ("kernel features, 2 vCPUs", lambda p: use_features(p, 2)),
]

if __name__ == "__main__":
    run_tests(TESTS)
