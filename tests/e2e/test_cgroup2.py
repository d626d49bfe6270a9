#!/usr/bin/python3
"""Control groups of version 2: the daemon's way with them, in a Debian guest whose systemd has them.

As a service of an ordinary user with a group of its own, as the package installs corbeld, started
again while machines (here: a process) live on in it; and as root. Part of `make test-limits`: what
the kernel gives by weight and cap is looked at by the guest's clock.
"""

import os
import pathlib
import re
import subprocess

from harness import expect, run_tests
from test_boot import start_debian, wait_debian

BUILD = pathlib.Path(os.environ["CORBEL_BUILD"])
MACHINE = "/tmp/machine"
UNIT = pathlib.Path(__file__).parents[2] / "packaging/systemd/corbeld.service"
SECONDS = 10


def look(text):
    """What cgroup-work said, by its first words."""
    lines = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    for control in ("cpu", "cpuset", "memory"):
        expect(re.search(rf"^{control} cgroup v2$", text, re.M), f"{control}: {text}")
    expect(abs(float(lines["weights"]) / 2 - 1) < 0.05, text)
    expect(abs(float(lines["cap"]) / 0.5 - 1) < 0.03, text)
    expect(re.search(r"^memory ended$", text, re.M) and "done" in text, text)
    print(f"# weights 2:1: {lines['weights']}:1; a cap of 50 percent: {lines['cap']} of a CPU")


def unit():
    """The package's unit in what matters here."""
    kept = [line for line in UNIT.read_text().splitlines()
            if re.match(r"(Delegate|KillMode|ExecStopPost)=", line)]
    expect(len(kept) == 3, kept)
    return "\n".join(["[Service]", "Type=oneshot", "RemainAfterExit=yes", "User=nobody",
                      *kept, "StandardOutput=truncate:/tmp/out",
                      f"ExecStart=/opt/cgroup-work {SECONDS} {MACHINE}", ""])


def work_in_a_guest(place):
    with start_debian(place, 1, False) as m:
        ssh = wait_debian(m, place)
        subprocess.run(ssh.base + ["cat >/opt/cgroup-work && chmod 755 /opt/cgroup-work"],
                       input=(BUILD / "tests/e2e/cgroup-work").read_bytes(), check=True)
        subprocess.run(ssh.base + ["cat >/etc/systemd/system/work.service"], input=unit().encode(),
                       check=True)
        ssh.run("systemctl daemon-reload")
        for verb in ("start", "restart"):
            ssh.run(f"systemctl {verb} work || {{ systemctl --no-pager status work; cat /tmp/out; false; }}")
            look(ssh.run("cat /tmp/out"))
            group = ssh.run(f"cat /proc/$(cat {MACHINE})/cgroup").strip()
            expect(group == "0::/system.slice/work.service/corbel-test/machine", f"{verb}: {group}")
            weight = ssh.run(f"cat /sys/fs/cgroup/{group[3:]}/cpu.weight").strip()
            expect(weight == "50", f"{verb}: the weight of what lives on is {weight}")
        ssh.run("systemctl stop work; kill $(cat /tmp/machine)")
        look(ssh.run(f"/opt/cgroup-work {SECONDS}"))
        left = ssh.run("find /sys/fs/cgroup -type d -name 'corbel*'")
        expect("/work.service" in left or not left, f"groups are left behind: {left}")
        ssh.start("systemctl poweroff")
        m.wait_exit()


if __name__ == "__main__":
    run_tests([("limits by control groups of version 2, in a service and as root", work_in_a_guest)])
