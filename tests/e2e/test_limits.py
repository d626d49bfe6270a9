#!/usr/bin/python3
"""What instances may use: control groups where this host lets us make some, monitors where not, and
what the host admits.

usage: test_limits.py [--full]    (--full: by the clock, as `make test-limits` runs it)
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from harness import BUILD, ORDINARY_UID, expect, run_tests
from platform_rig import Platform, delegated_groups

FULL = "--full" in sys.argv[1:]
MIB = 1 << 20
SPIN, HALT = "s", "h"  # command lines of the tiny guest
SECONDS = 10  # of each figure by the clock


class Host(Platform):
    """A platform that also has an image whose guest does nothing but spin or halt."""

    def start_daemon(self):
        image = pathlib.Path(self.home) / ".local/share/corbel/images/tiny"
        if not image.exists():
            image.mkdir(parents=True)
            shutil.copy(BUILD / "tests/e2e/vmm-guest", image / "vmlinuz")
            (image / "image.json").write_text(json.dumps(
                {"kind": "tiny", "kernel": "test", "cmdline": HALT, "memory_mib": 16}))
            if os.geteuid() == 0:
                subprocess.run(["chown", "-R", str(ORDINARY_UID), image], check=True)
        super().start_daemon()

    def tiny(self, name, does=HALT, **more):
        """Its instance, as the interface shows it."""
        self.finish(self.ok("POST", "/v1/instances", {
            "name": name, "image": "tiny", "engine": "soft", "cpus": 1, "memory_mib": 16,
            "cmdline": does, **more}))
        return self.ok("GET", f"/v1/instances/{name}")

    def change(self, name, **fields):
        answer = self.ok("PATCH", f"/v1/instances/{name}", fields)
        self.finish(answer)
        return self.ok("GET", f"/v1/instances/{name}")

    def count(self, name, counter):
        """A counter of its monitor's; one on a busy host may be late with it."""
        while True:
            status, answer = self.call("GET", f"/v1/instances/{name}/statistics")
            if status == 200:
                return answer[counter]
            expect(status == 503, f"{status}: {answer}")

    def until(self, name, counter, holds):
        while not holds(self.count(name, counter)):
            pause()


def pause():
    time.sleep(0.2)  # between two looks, not a limit


def processes_of(pid):
    """A process and all its descendants."""
    children = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def members(folder, pid):
    """The group of an instance in one hierarchy, and whether all its processes are in it."""
    groups = [group for group in pathlib.Path(folder).glob("corbel-*/i-*/")
              if str(pid) in (group / "cgroup.procs").read_text().split()]
    expect(len(groups) == 1, f"{pid} is in {groups} of {folder}")
    inside = set((groups[0] / "cgroup.procs").read_text().split())
    outside = [each for each in processes_of(pid) if str(each) not in inside]
    expect(not outside, f"{outside} are not in {groups[0]}")
    return groups[0]


def read(folder, name):
    return (pathlib.Path(folder) / name).read_text().strip()


def limit_by_groups(place):
    with delegated_groups("cpu", "cpuset") as (group, folders):
        if not group:
            print("# this host lets us make no control groups for CPU time")
            return
        with Host(place, "--cgroup", group) as host:
            means = host.ok("GET", "/v1/host")["limits"]
            expect(means["cpu_weight"]["means"] == "cgroup v1", f"{means}")
            vm = host.tiny("vm", SPIN, cpus=2, cpu_weight=200, cpu_cap_percent=25)
            cpu = members(folders[0], vm["pid"])
            expect(read(cpu, "cpu.shares") == "2048", read(cpu, "cpu.shares"))
            expect(read(cpu, "cpu.cfs_quota_us") == "50000", "a quarter of two CPUs")
            expect("unenforced" not in vm, f"{vm}")
            # The kernel keeps it to that when it lets it wait. More than a hundredth a guest that
            # spins is given on any host.
            host.change("vm", cpu_cap_percent=1)
            expect(read(cpu, "cpu.cfs_quota_us") == "2000", "a hundredth of two CPUs")
            while "nr_throttled 0\n" in (cpu / "cpu.stat").read_text():
                pause()
            vm = host.change("vm", cpu_weight=None, cpu_cap_percent=0, pinned_cpus="0")
            expect(read(cpu, "cpu.shares") == "1024", "the usual weight again")
            expect(read(cpu, "cpu.cfs_quota_us") == "-1", "no cap any more")
            expect(read(members(folders[1], vm["pid"]), "cpuset.cpus") == "0", "not pinned")
            # The daemon goes, and another one takes the groups over.
            host.stop_daemon(signal.SIGKILL)
            host.start_daemon()
            host.change("vm", cpu_weight=50)
            expect(read(members(folders[0], vm["pid"]), "cpu.shares") == "512", "not found again")
            # A reservation becomes a weight that depends on who else runs.
            host.tiny("kept", cpu_reserved_percent=50)
            kept = members(folders[0], host.ok("GET", "/v1/instances/kept")["pid"])
            cpus = os.sysconf("SC_NPROCESSORS_ONLN")
            wanted = 100 + 50 * (50 + 100) // (100 * cpus - 50)
            expect(read(kept, "cpu.shares") == str(wanted * 1024 // 100), read(kept, "cpu.shares"))
            host.finish(host.ok("POST", "/v1/instances/vm/stop", {"force": True}))
            wanted = 100 + 50 * 100 // (100 * cpus - 50)
            while read(kept, "cpu.shares") != str(wanted * 1024 // 100):
                pause()
            for name in ("vm", "kept"):
                host.finish(host.ok("DELETE", f"/v1/instances/{name}"))
            left = [str(each) for each in folders for each in pathlib.Path(each).glob("*/i-*/")]
            expect(not left, f"{left}")


def spend_credits(place):
    """A burst takes credits; without any the machine is held at its baseline, by another daemon too, until it has none."""
    with delegated_groups("cpu", "cpuset") as (group, folders):
        with Host(place, "--cgroup", group or "none", "--history-step", "1") as host:
            means = host.ok("GET", "/v1/host")["limits"]
            expect(means["cpu_baseline_percent"] == means["cpu_cap_percent"], f"{means}")
            idle = host.tiny("idle", HALT, cpu_baseline_percent=50)
            busy = host.tiny("busy", SPIN, cpu_baseline_percent=1)
            expect("cpu_held" not in idle, f"{idle}")
            while not host.ok("GET", "/v1/instances/busy").get("cpu_held"):
                pause()
            shown = host.ok("GET", "/v1/instances/busy")
            expect(shown["cpu_credits"] == 0, f"held with credits: {shown}")
            if group:
                held = members(folders[0], busy["pid"])
                while read(held, "cpu.cfs_quota_us") != "1000":
                    pause()
            shown = host.ok("GET", "/v1/instances/idle")
            expect(not shown["cpu_held"] and 250 < shown["cpu_credits"] <= 24 * 1800, f"{shown}")
            shown = host.change("idle", cpus=3)  # which need a restart: what is asked for earns nothing
            expect(shown.get("restart_needed") and shown["cpus_now"] == 1, f"{shown}")
            host.change("idle", cpu_baseline_percent=0)
            while "cpu_credits" in host.ok("GET", "/v1/instances/idle"):
                pause()
            host.change("idle", cpu_baseline_percent=50)
            while "cpu_credits" not in (shown := host.ok("GET", "/v1/instances/idle")):
                pause()
            expect(250 < shown["cpu_credits"] < 600, f"{shown}")
            expect(250 < host.count("idle", "cpu.credits_s") <= 24 * 1800, "not in its statistics")
            status, text = host.call("GET", "/metrics")
            text = text.decode() if isinstance(text, bytes) else str(text)
            expect(status == 200 and "corbel_instance_cpu_credits_seconds{" in text, text[:300])
            host.stop_daemon(signal.SIGKILL)
            host.start_daemon()
            shown = host.ok("GET", "/v1/instances/busy")
            expect(shown["cpu_held"] and shown["cpu_credits"] == 0, f"another daemon has given credits: {shown}")
            for action in ("stop", "start"):  # neither gives any
                host.finish(host.ok("POST", f"/v1/instances/busy/{action}", {"force": True} if action == "stop" else None))
                shown = host.ok("GET", "/v1/instances/busy")
                expect(shown["cpu_held"] and shown["cpu_credits"] == 0, f"{action}: {shown}")
            if group:
                held = members(folders[0], shown["pid"])
                expect(read(held, "cpu.cfs_quota_us") == "1000", "it begins without its baseline")
            host.change("busy", cpu_baseline_percent=0)
            while "cpu_credits" in host.ok("GET", "/v1/instances/busy"):
                pause()
            if group:
                expect(read(held, "cpu.cfs_quota_us") == "-1", "still held")
            for name in ("idle", "busy"):
                host.finish(host.ok("DELETE", f"/v1/instances/{name}"))


def limit_without_groups(place):
    with Host(place, "--cgroup", "none") as host:
        means = host.ok("GET", "/v1/host")["limits"]
        expect(means["cpu_weight"] == {"means": "none",
                                       "reason": "control groups are switched off"}, f"{means}")
        expect(means["cpu_cap_percent"]["means"] == "monitor", f"{means}")
        # Its image has no disk: a limit of that keeps nothing else from being changed.
        vm = host.tiny("vm", SPIN, cpu_weight=200, memory_limit_mib=100, cpu_cap_percent=50,
                       pinned_cpus="0", disk_iops=100)
        expect(vm["unenforced"] == "cpu_weight memory_limit_mib", f"{vm}")
        for pid in processes_of(vm["pid"]):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    expect(os.sched_getaffinity(int(thread)) == {0}, f"{pid}/{thread} runs anywhere")
        # Less than even a busy host gives to a guest that spins, more than its monitor needs.
        host.change("vm", cpu_cap_percent=5)
        host.until("vm", "vcpu.rests", lambda count: count >= 3)
        vm = host.change("vm", cpu_cap_percent=0, cpu_weight=100, memory_limit_mib=0)
        expect("unenforced" not in vm, f"{vm}")
        # Nothing holds it back any more: it gets on, and never rests.
        rests, ran = host.count("vm", "vcpu.rests"), host.count("vm", "vcpu.run_ns")
        host.until("vm", "vcpu.run_ns", lambda now: now >= ran + 100_000_000)
        expect(host.count("vm", "vcpu.rests") <= rests + 1, "it rests without a cap")


def raise_the_limit_with_the_memory(place):
    """What a resize of a running machine changes, and what its group is told (or would be)."""
    with delegated_groups("memory") as (group, folders), \
            Host(place, "--cgroup", group or "none") as host:
        machine = host.launch("vm", memory_limit_mib=256,
                              cmdline="console=ttyS0 quiet memhp_default_state=online_movable")
        pid = host.ok("GET", f"/v1/instances/{machine}")["pid"]

        def limits():
            noted = json.loads((pathlib.Path(host.home) / "corbeld/vm" / machine /
                                "limits.json").read_text())["memory_bytes"]
            if group and noted:
                kept = int(read(members(folders[0], pid), "memory.limit_in_bytes"))
                expect(kept == noted, f"the group has {kept}, not {noted}")
            vm = host.ok("GET", "/v1/instances/vm")
            return vm["memory_mib"], vm["memory_limit_mib"], noted // MIB

        def until(*wanted):  # what is noted follows the resize's own end
            while limits() != wanted:
                expect(limits()[:2] == wanted[:2], f"{limits()}")
                pause()

        if not group:
            print("# this host lets us make no control groups for memory")
        until(128, 256, 256)
        host.change("vm", memory_mib=384)
        until(384, 512, 512)
        host.change("vm", memory_mib=192)
        until(192, 320, 320)
        host.change("vm", memory_mib=256, memory_limit_mib=400)
        until(256, 400, 400)
        host.refused(400, "PATCH", "/v1/instances/vm", {"memory_mib": 300, "memory_limit_mib": 299},
                     code="invalid", field="memory_limit_mib")
        host.change("vm", memory_limit_mib=0)
        host.change("vm", memory_mib=300)
        until(300, 0, 0)


def refuse_what_does_not_fit(place):
    with Host(place, "--cgroup", "none", "--cpus", "2") as host:
        make = {"name": "vm", "image": "tiny", "cpus": 1, "memory_mib": 64}
        for field, value in (("cpu_weight", 0), ("cpu_weight", 10001), ("cpu_cap_percent", 101),
                             ("cpu_reserved_percent", 101), ("pinned_cpus", "1-"),
                             ("pinned_cpus", "1000"), ("memory_limit_mib", 63),
                             ("balloon_mib", 64), ("net_bps", -1), ("disk_iops", "many")):
            host.refused(400, "POST", "/v1/instances", {**make, field: value}, code="invalid",
                         field=field)
        host.refused(400, "POST", "/v1/instances",
                     {**make, "cpu_cap_percent": 50, "cpu_reserved_percent": 51}, code="invalid",
                     field="cpu_reserved_percent")
        host.tiny("first", cpus=2, cpu_reserved_percent=100)
        error = host.refused(503, "POST", "/v1/instances",
                             {**make, "cpu_reserved_percent": 81}, code="capacity",
                             field="cpu_reserved_percent")
        expect("180" in error["message"] and "100" in error["message"], f"{error}")
        host.tiny("second", cpu_reserved_percent=80)
        # More is refused to one that runs, too, and nothing of it holds.
        host.refused(503, "PATCH", "/v1/instances/second", {"cpu_reserved_percent": 90},
                     code="capacity")
        expect(host.ok("GET", "/v1/instances/second")["cpu_reserved_percent"] == 80, "changed")
        used = host.ok("GET", "/v1/host")["cpu_reserved_percent"]
        expect(used == {"total": 180, "used": 180}, f"{used}")


def take_limits_from_the_type(place):
    with Host(place, "--cgroup", "none") as host:
        host.ok("POST", "/v1/types", {"name": "slow", "cpus": 1, "memory_mib": 64,
                                      "cpu_cap_percent": 20, "net_bps": 1000000})
        host.finish(host.ok("POST", "/v1/instances", {"name": "vm", "image": "tiny",
                                                      "type": "slow", "desired": "stopped",
                                                      "net_bps": 5000}))
        vm = host.ok("GET", "/v1/instances/vm")
        expect((vm["cpu_cap_percent"], vm["net_bps"], vm["cpu_weight"]) == (20, 5000, 100), f"{vm}")
        vm = host.ok("PATCH", "/v1/instances/vm", {"net_bps": None})["instance"]
        expect(vm["net_bps"] == 1000000, f"{vm}")
        vm = host.ok("PATCH", "/v1/instances/vm", {"type": "micro"})["instance"]
        expect("cpu_cap_percent" not in vm and "net_bps" not in vm, f"{vm}")


def keep_tenants_to_types(place):
    """Who is bound to a project, as its administrator even, gives no more than a type; less always."""
    with Host(place, "--cgroup", "none") as host:
        host.ok("POST", "/v1/projects", {"name": "blue"})
        host.ok("POST", "/v1/types", {"name": "slow", "cpus": 1, "memory_mib": 64, "cpu_weight": 50,
                                      "cpu_cap_percent": 20, "cpu_baseline_percent": 10,
                                      "net_bps": 1000000})
        make = {"name": "vm", "image": "tiny", "desired": "stopped"}
        for role in ("member", "admin"):
            token = host.ok("POST", "/v1/tokens",
                            {"name": role, "role": role, "project": "blue"})["token"]
            for of_type, field, value in (
                    ("slow", "cpu_weight", 51), ("micro", "cpu_weight", 101),
                    ("slow", "cpu_cap_percent", 21), ("slow", "cpu_cap_percent", 0),
                    ("slow", "cpu_baseline_percent", 0), ("slow", "cpu_baseline_percent", 11),
                    ("slow", "net_bps", 0), ("micro", "cpu_reserved_percent", 1),
                    ("micro", "pinned_cpus", "0")):
                host.refused(403, "POST", "/v1/instances", {**make, "type": of_type, field: value},
                             token=token, code="quota", field=field)
            host.finish(host.ok("POST", "/v1/instances", {
                **make, "type": "slow", "cpu_weight": 10, "net_bps": 999}, token=token))
            for field, value in (("cpu_weight", 51), ("cpu_cap_percent", 0), ("pinned_cpus", "0"),
                                 ("cpu_baseline_percent", 11)):
                host.refused(403, "PATCH", "/v1/instances/vm", {field: value}, token=token,
                             code="quota", field=field)
            vm = host.ok("PATCH", "/v1/instances/vm", {
                "cpu_weight": None, "cpu_cap_percent": 15, "disk_bps": 1000000},
                token=token)["instance"]
            expect((vm["cpu_weight"], vm["cpu_cap_percent"], vm["net_bps"]) == (50, 15, 999), f"{vm}")
            # What an administrator of all gave stays.
            host.ok("PATCH", "/v1/instances/vm?project=blue", {"cpu_weight": 500})
            vm = host.ok("PATCH", "/v1/instances/vm", {"cpu_cap_percent": 10}, token=token)["instance"]
            expect(vm["cpu_weight"] == 500, f"{vm}")
            host.finish(host.ok("DELETE", "/v1/instances/vm", token=token))


@contextlib.contextmanager
def pretended_host(place, cpus, gib):
    """One that is said to be larger than this one: its monitors are told to take less of it."""
    program = place.path / "small-vmm"
    program.write_text("#!/bin/sh\n"
                       """sed -i 's/"memory":"[^"]*"/"memory":"64M"/; s/"cpus":"[^"]*"/"cpus":"1"/;"""
                       """ s/"cpus":[0-9][0-9]*/"cpus":1/' "$2"\n"""
                       f"exec {place.vmm} \"$@\"\n")
    program.chmod(0o755)
    with Host(place, "--cgroup", "none", "--cpus", str(cpus), "--memory", str(gib << 10),
              "--cpu-ratio", "100", "--vmm", str(program)) as host:
        yield host


def admit_what_the_host_has(place):
    """Three of different sizes on a large host; four that fill a small one, and a fifth."""
    with pretended_host(place, 64, 256) as host:
        for cpus, gib in ((8, 16), (4, 8), (16, 32)):
            host.tiny(f"vm{cpus}", cpus=cpus, memory_mib=gib << 10)
        shown = host.ok("GET", "/v1/host")
        expect(shown["cpus"] == {"total": 64, "used": 28}, f"{shown}")
        expect(shown["memory_mib"] == {"total": 256 << 10, "used": 56 << 10}, f"{shown}")
    with pretended_host(place, 16, 64) as host:
        for number in range(4):
            host.tiny(f"vm{number}", cpus=4, memory_mib=16 << 10)
        shown = host.ok("GET", "/v1/host")
        expect(shown["cpus"] == {"total": 16, "used": 16}, f"{shown}")
        expect(shown["memory_mib"] == {"total": 64 << 10, "used": 64 << 10}, f"{shown}")
        fifth = {"name": "fifth", "image": "tiny", "cpus": 4, "memory_mib": 16 << 10}
        error = host.refused(503, "POST", "/v1/instances", fifth, code="capacity", field="cpus")
        expect(error["message"] == "the host has 16 CPUs, of which 16 are given away; 4 more do "
               "not fit", f"{error}")
        # One that is off has nothing, and gets nothing until there is room.
        host.finish(host.ok("POST", "/v1/instances", {**fifth, "desired": "stopped"}))
        host.refused(503, "POST", "/v1/instances/fifth/start", code="capacity")
        host.finish(host.ok("POST", "/v1/instances/vm0/stop", {"force": True}))
        host.finish(host.ok("POST", "/v1/instances/fifth/start"))


def resident(pid):
    """Bytes of guest memory that the host holds."""
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "memfd:guest" in os.readlink(fd):
                return os.stat(fd).st_blocks * 512
    raise AssertionError(f"process {pid} has no guest memory")


def give_memory_back(place):
    """A guest of Linux: what it frees returns by itself; what the balloon is told, on demand."""
    with Host(place, "--cgroup", "none") as host:
        fill = ("dd_if=/dev/urandom_of=/tmp/fill_bs=1M_count=60_2>/dev/null;echo_filled;"
                "rm_/tmp/fill;echo_freed;sleep_1000000")
        machine = host.launch("vm", memory_mib=192,
                              cmdline=f"console=ttyS0 quiet corbel.run={fill}")
        pid = host.ok("GET", f"/v1/instances/{machine}")["pid"]
        host.until("vm", "balloon.discarded_bytes", lambda count: count >= 80 * MIB)
        expect(resident(pid) < 120 * MIB, f"the host still holds {resident(pid)} bytes")
        host.change("vm", balloon_mib=64)
        host.until("vm", "balloon.actual_bytes", lambda count: count == 64 * MIB)
        host.change("vm", balloon_mib=0)
        host.until("vm", "balloon.actual_bytes", lambda count: count == 0)


# ---- by the clock ----

def cpu_ns(pid):
    total = 0
    for each in processes_of(pid):
        for thread in pathlib.Path(f"/proc/{each}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total


def measure(*pids):
    """What each used of a CPU in a while, and how long that was."""
    before, begin = [cpu_ns(pid) for pid in pids], time.monotonic()
    time.sleep(SECONDS)
    return [(cpu_ns(pid) - was) / 1e9 / (time.monotonic() - begin)
            for pid, was in zip(pids, before)]


def prefer(*groups):
    """Groups of CPU time before all others: what is measured has what it may, whoever is busy."""
    for group in groups:
        (group / "cpu.shares").write_text("262144")


def get_what_the_weight_says(place):
    with delegated_groups("cpu", "cpuset") as (group, folders):
        expect(group, "this host lets us make no control groups: nothing to measure")
        with Host(place, "--cgroup", group) as host:
            pids = [host.tiny(name, SPIN, pinned_cpus="0", cpu_weight=weight)["pid"]
                    for name, weight in (("two", 200), ("one", 100))]
            own = members(folders[0], pids[0]).parent
            prefer(own, own.parent)
            two, one = measure(*pids)
            print(f"# weights 2:1: {two:.4f} and {one:.4f} of a CPU, {two / one:.3f}:1")
            expect(abs(two / one / 2 - 1) < 0.05, f"{two} and {one}")


def expect_half(host, means):
    vm = host.ok("GET", "/v1/instances/vm")
    used, = measure(vm["pid"])
    print(f"# a cap of 50 percent by {means}: {used:.4f} of a CPU")
    expect(abs(used / 0.5 - 1) < 0.03, f"{used}")


def keep_to_the_cap_by_groups(place):
    with delegated_groups("cpu", "cpuset") as (group, folders):
        expect(group, "this host lets us make no control groups: nothing to measure")
        with Host(place, "--cgroup", group) as host:
            own = members(folders[0], host.tiny("vm", SPIN, cpu_cap_percent=50)["pid"])
            prefer(own, own.parent, own.parent.parent)
            expect_half(host, "a control group")


@contextlib.contextmanager
def preferred(pid):
    """The process before all others, where this host lets us; without a cap by the kernel."""
    with delegated_groups("cpu", "cpuset") as (_, folders):
        group = pathlib.Path(folders[0]) / "preferred" if folders else None
        if group:
            group.mkdir()
            prefer(group, group.parent)
            for each in processes_of(pid):
                (group / "cgroup.procs").write_text(str(each))
        try:
            yield
        finally:
            if group:
                for each in (group / "cgroup.procs").read_text().split():
                    (group.parent.parent / "cgroup.procs").write_text(each)
                group.rmdir()


def keep_to_the_cap_without_groups(place):
    with Host(place, "--cgroup", "none") as host:
        vm = host.tiny("vm", SPIN, cpu_cap_percent=50)
        with preferred(vm["pid"]):
            expect_half(host, "the monitor")


TESTS = [
    ("control groups have what the instance says, from its start to its end", limit_by_groups),
    ("without control groups the monitor keeps the cap, and the rest is said", limit_without_groups),
    ("the limit of memory rises and falls with the memory", raise_the_limit_with_the_memory),
    ("credits are spent, and a machine without any is held at its baseline", spend_credits),
    ("limits that do not fit are refused, reservations too", refuse_what_does_not_fit),
    ("what an instance does not say, its type does", take_limits_from_the_type),
    ("tenants give no more than a type does", keep_tenants_to_types),
    ("the host admits what it has, and no more", admit_what_the_host_has),
    ("guests give memory back, by themselves and on demand", give_memory_back),
]
CLOCK_TESTS = [
    ("two busy machines share a CPU as their weights say", get_what_the_weight_says),
    ("a cap holds by control groups", keep_to_the_cap_by_groups),
    ("a cap holds by the monitor", keep_to_the_cap_without_groups),
]

if __name__ == "__main__":
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--full"]
    run_tests(CLOCK_TESTS if FULL else TESTS)
