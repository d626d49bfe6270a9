#!/usr/bin/python3
"""Uses each virtio device from inside the busybox guest, then resets the guest in the middle of it.

usage: test_devices.py [WORD...]     only the tests whose names hold a word
"""

import hashlib
import os

from harness import Control, Machine, expect, guest, run_tests, web_server

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")
DISK_BYTES = 64 << 20
MIB = 1 << 20


def start(place, cpus, *more):
    image = guest("busybox")
    disk = place.home / "devices.raw"
    content = os.urandom(DISK_BYTES)
    disk.write_bytes(content)
    place.own(disk)
    machine = Machine(place, ["--engine", ENGINE, "--cpus", str(cpus), "--memory", "128M",
                              "--kernel", image.kernel, "--initrd", image.initrd,
                              "--cmdline", "console=ttyS0", "--disk", f"{disk}",
                              "--net", "user", *more])
    return machine, content


def ready(m, after=0):
    m.wait_text("/ #", m.wait_text("corbel-busybox: ready", after))


def use_devices(place):
    control = place.home / "control"
    m, content = start(place, 1, "--control", control)
    body = os.urandom(8 * MIB)
    with m, web_server(body) as port:
        ready(m)
        digest = hashlib.sha256(content).hexdigest()
        expect(digest in m.run("dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum"),
               "the guest reads another disk than the host wrote")
        m.network_up()
        digest = hashlib.sha256(body).hexdigest()
        expect(digest in m.run(f"wget -q -O - http://10.0.2.2:{port}/ | sha256sum"),
               "a file changed on its way over the network")
        m.run("test $(head -c 1000 /dev/hwrng | wc -c) = 1000")
        use_balloon(m, control)
        count_what_was_done(control)
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, f"powering off gives a non-zero status\n{m.story()}")


def use_balloon(m, path):
    """The guest gives 32 MiB and gets them back."""
    free = "$(awk '/MemFree/ {print $2}' /proc/meminfo)"
    with Control(path) as watcher, Control(path) as control:
        watcher.expect_ok("watch")

        def move(size):
            control.expect_ok("balloon", bytes=size)
            while watcher.line() != {"event": "balloon", "bytes": size}:
                pass  # the guest moves it in steps

        m.run(f"free={free}")
        move(32 * MIB)
        statistics = control.expect_ok("statistics")["statistics"]
        expect(statistics["balloon.discarded_bytes"] >= 32 * MIB, f"not all came: {statistics}")
        m.run(f"test {free} -lt $((free - 28000))")
        move(0)
        m.run(f"test {free} -gt $((free - 8000))")


def count_what_was_done(path):
    """What the guest did above is in the counters, and they agree with each other."""
    with Control(path) as control:
        answer = control.expect_ok("statistics")
        brief = control.expect_ok("statistics", engine=False)["statistics"]
    counted, cpus, latencies = (answer[key] for key in ("statistics", "vcpus", "latencies"))
    expect("vcpu.run_ns" in brief and "exits" not in brief and "exits" in counted, f"{brief}")
    expect(counted["disk.read_bytes"] >= DISK_BYTES, f"{counted}")
    expect(counted["net.rx_bytes"] > 8 * MIB > counted["net.tx_bytes"] > 0, f"{counted}")
    expect(counted["memory.configured_bytes"] == 128 * MIB >= counted["memory.resident_bytes"] > 16 * MIB,
           f"{counted}")
    expect(0 < counted["guest.free_bytes"] < counted["guest.total_bytes"] < 128 * MIB, f"{counted}")
    for name, count in (("disk.read", "disk.reads"), ("disk.flush", "disk.flushes"),
                        ("exit.pio", "vcpu.pio"), ("exit.mmio", "vcpu.mmio")):
        expect(sum(latencies[name]["counts"]) == counted[count], f"{name}: {latencies} {counted}")
    expect(latencies["disk.read"]["sum_ns"] == counted["disk.read_ns"] > 0, f"{latencies} {counted}")
    expect(sum(cpu["exits"]["pio"] for cpu in cpus) == counted["vcpu.pio"] > 0, f"{cpus} {counted}")
    expect(len(cpus) == 1 and counted["uptime_ns"] > 0, f"{cpus} {counted}")
    if os.path.exists("/proc/self/schedstat"):
        expect(0 < cpus[0]["guest_ns"] <= cpus[0]["run_ns"] == counted["vcpu.run_ns"], f"{cpus} {counted}")
        expect(cpus[0]["run_ns"] + cpus[0]["steal_ns"] <= 2 * counted["uptime_ns"], f"{cpus} {counted}")


def reset_in_the_middle(place):
    m, content = start(place, 2)
    with m:
        ready(m)
        for _ in range(2):
            mark = m.mark()
            m.type("dd if=/dev/vda of=/dev/null bs=1M iflag=direct & "
                   "dd if=/dev/hwrng of=/dev/null bs=1k & reboot -f\n")
            ready(m, mark)
        digest = hashlib.sha256(content).hexdigest()
        expect(digest in m.run("dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum"),
               "the disk changed over a reset")
        m.network_up()
        m.run("ping -c 1 -W 600 10.0.2.2")
        m.type("poweroff -f\n")
        expect(m.wait_exit() == 0, f"powering off gives a non-zero status\n{m.story()}")


if __name__ == "__main__":
    run_tests([
        ("disk, network, entropy and balloon do their work", use_devices),
        ("a reset in the middle of transfers leaves devices that work", reset_in_the_middle),
    ])
