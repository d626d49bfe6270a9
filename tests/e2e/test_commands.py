#!/usr/bin/python3
"""The verbs of `corbel` that the daemon answers, as a user and a script use them: real machines, a
daemon that is started by the first verb, killed, and found again, and mistakes of every kind."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import urllib.parse

from harness import LIMIT_S, expect, free_port, run_tests
from platform_rig import give_disk
from test_cli import ENGINE, User


class Shared:
    """One user with one running busybox guest, which the tests find and leave running."""

    user = None

    @classmethod
    def json(cls, *words):
        return json.loads(cls.user.run(*words, "--json")[0])

    @classmethod
    def state(cls, name="vm"):
        return cls.json("show", name)["state"]


def daemon_pid(user):
    """Who listens on the user's socket, as the kernel knows."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(os.path.join(user.home, "corbeld/api.sock"))
        return int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")


def kill_daemon(user):
    pid = daemon_pid(user)
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([process], [], [], LIMIT_S)
    os.close(process)
    return pid


def run_and_list(place):
    Shared.user = user = User(place)
    user.use_image("busybox")
    out, err = user.run("run", "busybox", "--name", "vm", "--engine", ENGINE, "--type", "micro",
                        "--tag", "env=test", "--detach", "--wait")
    expect("corbel-busybox: ready" in out, out)
    expect(err.count("started corbeld") == 1 and "corbel console vm" in err, err)
    out, err = user.run("list")
    expect(err == "", f"said more than once that it started the daemon: {err}")
    head, row = out.splitlines()
    expect(head.split()[:3] == ["NAME", "STATE", "IMAGE"] and row.split()[:3] == ["vm", "running", "busybox"], out)
    (row,) = Shared.json("list", "--filter", "tag.env=test")
    expect(row["cpus"] == 1 and row["memory_mib"] == 256, row)
    expect(Shared.json("list", "--filter", "tag.env=prod") == [], "a filter that fits nothing")
    user.run("list", "--filter", "colour=red", status=2)
    expect('"vm" runs' in user.run("logs", "vm")[0], "no log")
    shown = dict(line.split(None, 1) for line in user.run("show", "vm")[0].splitlines() if " " in line)
    expect(shown["state"].strip() == "running" and shown["memory_mib"].strip() == "256.0 MiB", shown)


def live_through_all_states(_place):
    user = Shared.user
    for verb, state in ((("pause", "vm"), "paused"), (("resume", "vm"), "running"),
                        (("restart", "--force", "vm"), "running"), (("stop", "--force", "vm"), "stopped")):
        user.run(*verb)
        expect(Shared.state() == state, f"{verb}: {Shared.state()}")
    _, err = user.run("pause", "vm", status=4)
    expect("corbel start vm" in err, err)
    user.run("resize", "vm", "--cpus", "2", "--memory", "300M")
    now = Shared.json("show", "vm")
    expect(now["cpus"] == 2 and now["memory_mib"] == 300, now)
    user.run("resize", "vm", status=2)
    user.run("resize", "vm", "--memory", "300000K", status=2)  # no whole MiB
    user.run("start", "vm")
    _, err = user.run("start", "vm", status=4)
    expect("already" in err and "corbel console vm" in err, err)
    out, _ = user.run("top", "--interval", "1", "--json")
    (row,) = json.loads(out)
    expect(row["name"] == "vm" and row["resident"] > 1 << 20 and row["cpu"] >= 0, row)
    expect("NAME" in user.run("top", "--interval", "1")[0], "no table")


def limit_machines(_place):
    """Set by run, changed while it runs by resize, shown; what is wrong is named."""
    user = Shared.user
    give_disk(user)
    user.run("run", "busybox", "--name", "limited", "--engine", ENGINE, "--type", "micro", "--max-cpus", "2",
             "--max-memory", "512M", "--cpu-weight", "200", "--cpu-cap", "50", "--cpu-reserved", "10",
             "--pinned-cpus", "0", "--memory-limit", "1G", "--disk-bps", "10M", "--disk-iops", "500", "--net-bps", "1M",
             "--net-pps", "1000", "--balloon", "16M", "--detach", "--wait")
    made = {"max_cpus": 2, "max_memory_mib": 512, "cpu_weight": 200, "cpu_cap_percent": 50, "cpu_reserved_percent": 10,
            "pinned_cpus": "0", "memory_limit_mib": 1024, "disk_bps": 10 << 20, "disk_iops": 500, "net_bps": 1 << 20,
            "net_pps": 1000, "balloon_mib": 16}

    def shown():
        row = Shared.json("show", "limited")
        return {name: row.get(name) for name in made}, row

    expect(shown()[0] == made, f"{shown()}")
    user.run("resize", "limited", "--cpu-weight", "none", "--cpu-cap", "75", "--cpu-reserved", "none", "--pinned-cpus",
             "none", "--memory-limit", "2G", "--disk-bps", "none", "--disk-iops", "100", "--net-bps", "512K", "--net-pps",
             "none", "--balloon", "none")
    changed = {**made, "cpu_weight": 100, "cpu_cap_percent": 75, "cpu_reserved_percent": 0, "pinned_cpus": None,
               "memory_limit_mib": 2048, "disk_bps": 0, "disk_iops": 100, "net_bps": 512 << 10, "net_pps": 0,
               "balloon_mib": 0}
    expect(shown()[0] == changed, f"{shown()}")
    user.run("resize", "limited", "--cpus", "2", "--memory", "320M")
    _, row = shown()
    expect((row["cpus_now"], row["memory_now_mib"]) == (2, 320) and "restart_needed" not in row, row)
    table = dict(line.split(None, 1) for line in user.run("show", "limited")[0].splitlines() if " " in line)
    expect((table["cpu_cap_percent"].strip(), table["disk_iops"].strip()) == ("75 %", "100"), table)
    before = shown()[0]
    for words, status, name in (
            (("--cpu-weight", "0"), 2, "cpu_weight"), (("--cpu-weight", "heavy"), 2, "--cpu-weight"),
            (("--cpu-cap", "101"), 2, "cpu_cap_percent"), (("--cpu-cap", "-1"), 2, "--cpu-cap"),
            (("--cpu-reserved", "1000"), 2, "cpu_reserved_percent"), (("--pinned-cpus", "1-"), 2, "pinned_cpus"),
            (("--pinned-cpus", "1000"), 2, "pinned_cpus"), (("--memory-limit", "128M"), 2, "memory_limit_mib"),
            (("--memory-limit", "1000K"), 2, "--memory-limit"), (("--balloon", "4G"), 2, "balloon_mib"),
            (("--disk-bps", "fast"), 2, "--disk-bps"), (("--disk-iops", "1.5"), 2, "--disk-iops"),
            (("--net-bps", "9999999T"), 2, "--net-bps"), (("--net-pps", "9" * 17), 2, "net_pps"),
            (("--max-cpus", "99"), 2, "max_cpus"), (("--max-cpus", "3"), 4, "stopped"),
            (("--max-memory", "1G"), 4, "stopped")):
        _, err = user.run("resize", "limited", *words, status=status)
        expect(name in err, f"{words}: {err}")
        if status == 2:
            _, err = user.run("run", "busybox", "--name", "never", "--type", "micro", "--detach", *words, status=2)
            expect(name in err, f"run {words}: {err}")
    expect(shown()[0] == before, f"something was changed: {shown()}")
    user.run("stop", "--force", "limited")
    user.run("resize", "limited", "--max-cpus", "none", "--max-memory", "1G")
    now = shown()[0]
    expect((now["max_cpus"], now["max_memory_mib"]) == (None, 1024), now)
    user.run("delete", "limited")
    user.run("type", "create", "slow", "--cpus", "1", "--memory", "128M", "--cpu-cap", "20", "--net-bps", "1M")
    row = Shared.json("type", "show", "slow")
    expect((row["cpu_cap_percent"], row["net_bps"]) == (20, 1 << 20), row)
    user.run("type", "delete", "slow")


def keep_logs(_place):
    """Of machines that ended by themselves, were killed, and ran again; until they are deleted."""
    user = Shared.user
    user.run("run", "busybox", "--name", "logged", "--engine", ENGINE, "--type", "micro", "--restart", "never",
             "--cmdline", "console=ttyS0 corbel.run=echo_first-$((40+2))", "--detach")
    instance = Shared.json("show", "logged")["id"]
    while Shared.state("logged") != "stopped":
        pass
    log = Shared.json("logs", "logged")
    expect("first-42" in log["serial"] and "Power down" in log["serial"], log)
    expect("first-42" in user.run("logs", "logged")[0], "the table has no console")
    user.run("run", "--name", "logged", "--cmdline", "console=ttyS0 corbel.hold", "--detach", "--wait")
    os.kill(Shared.json("show", "logged")["pid"], signal.SIGKILL)
    while Shared.state("logged") not in ("stopped", "failed"):
        pass
    log = Shared.json("logs", "logged")
    first, second = log["serial"].find("first-42"), log["serial"].rfind("Linux version")
    expect(-1 < first < second, f"not both lives are there: {first}, {second}: {log['serial'][-500:]}")
    expect(log["monitor"], "what the monitor said is gone")
    (kept,) = pathlib.Path(user.home).glob(f"**/machines/{instance}/serial.log")
    expect(kept.stat().st_mode & 0o777 == 0o600, oct(kept.stat().st_mode))
    user.run("delete", "logged")
    user.run("logs", "logged", status=3)
    expect(not kept.exists(), "the log of a machine that is deleted is left")


def forward_ports(_place):
    """Opened and closed while the machine runs, kept when it and the daemon start again."""
    user = Shared.user

    def ports():
        return {row["guest_port"]: row["host_port"] for row in Shared.json("forward", "list", "vm")}

    def is_open(port):
        with socket.socket() as peer:
            return peer.connect_ex(("127.0.0.1", port)) == 0

    user.run("forward", "add", "vm", "80")
    free = ports()[80]
    mine = free_port()
    user.run("forward", "add", "vm", f"{mine}:8080")
    expect(ports() == {80: free, 8080: mine}, f"{ports()}")
    expect(is_open(free) and is_open(mine), "a forward is not open")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        _, err = user.run("forward", "add", "vm", f"{taken}:81", status=1)
        expect(str(taken) in err and "another" in err, err)
    expect(ports() == {80: free, 8080: mine}, f"a refused forward changed others: {ports()}")
    user.run("forward", "add", "vm", f"{mine}:82", status=4)
    user.run("forward", "add", "vm", "80:x", status=2)
    user.run("forward", "add", "vm", "70000:80", status=2)
    user.run("forward", "remove", "vm", str(taken), status=3)
    user.run("forward", "remove", "vm", str(free))
    expect(ports() == {8080: mine} and not is_open(free), f"{ports()}")
    kill_daemon(user)
    user.run("restart", "--force", "vm")
    expect(ports() == {8080: mine} and is_open(mine), f"{ports()}")
    user.run("forward", "remove", "vm", str(mine))
    expect(ports() == {} and not is_open(mine), f"{ports()}")


def keep_volumes_and_snapshots(_place):
    user = Shared.user
    user.run("volume", "create", "data", "1G", "--tag", "k=v")
    user.run("volume", "create", "data", "1G", status=4)
    user.run("volume", "create", "other", "100M", status=2)  # no whole GiB
    user.run("snapshot", "create", "first", "--volume", "data")
    user.run("snapshot", "create", "none", status=2)
    user.run("snapshot", "create", "none", "--volume", "nothing", status=3)
    user.run("volume", "resize", "data", "2G")
    expect(Shared.json("volume", "show", "data")["size_gib"] == 2, "it did not grow")
    user.run("volume", "resize", "data", "1G", status=2)
    user.run("volume", "resize", "data", status=2)
    user.run("volume", "resize", "data", "--bps", "10M", "--iops", "100")
    row = Shared.json("volume", "show", "data")
    expect((row["size_gib"], row["bps"], row["iops"]) == (2, 10 << 20, 100), row)
    user.run("volume", "resize", "data", "--iops", "none")
    expect(Shared.json("volume", "show", "data")["iops"] == 0, "the limit is still there")
    _, err = user.run("volume", "create", "slow", "1G", "--bps", "slow", status=2)
    expect("--bps" in err, err)
    expect("first" in user.run("snapshot", "list")[0], "no snapshot is listed")
    user.run("snapshot", "restore", "first")
    user.run("snapshot", "delete", "first")
    user.run("volume", "delete", "data")
    user.run("volume", "show", "data", status=3)


def keep_nics(_place):
    user = Shared.user
    user.run("nic", "create", "front", "--mac", "52:54:00:0f:0f:0f", "--tag", "k=v")
    _, err = user.run("nic", "create", "wrong", "--mac", "53:54:00:0f:0f:0f", status=2)
    expect("mac" in err, err)
    user.run("nic", "create", "second", "--mac", "52:54:00:0f:0f:0f", status=4)
    user.run("run", "busybox", "--name", "carded", "--type", "micro", "--engine", ENGINE, "--nic", "nothing",
             "--detach", status=3)
    user.run("run", "busybox", "--name", "carded", "--type", "micro", "--engine", ENGINE, "--nic", "front",
             "--detach")
    card = Shared.json("nic", "show", "front")
    expect(card["instance"] == Shared.json("show", "carded")["id"] and card["state"] == "in-use", card)
    expect(card["id"] in user.run("show", "carded")[0], "the instance does not show it")
    rows = [line.split() for line in user.run("nic", "list")[0].splitlines()]
    expect(rows[0][:4] == ["NAME", "MAC", "NETWORK", "STATE"], rows)
    expect(["front", "52:54:00:0f:0f:0f", "user", "in-use"] in [row[:4] for row in rows], rows)
    expect(user.run("complete", "run", "--nic", "fr")[0].split() == ["front"], "no name is completed")
    expect(user.run("complete", "nic", "delete", "fr")[0].split() == ["front"], "no name is completed")
    user.run("nic", "delete", "front", status=4)
    user.run("delete", "carded", "--force")
    user.run("nic", "delete", "front")
    user.run("nic", "show", "front", status=3)


def keep_accounts(place):
    """Projects, quotas, users, tokens; what a token may, over TCP, and what not."""
    user = Shared.user
    (url,) = Shared.json("daemon", "status")["urls"]
    user.run("project", "create", "red", "--instances", "1")
    user.run("project", "create", "red", status=4)
    token = {}
    for role in ("viewer", "member"):
        out, _ = user.run("token", "create", role, "--role", role, "--project", "red", "--expires", "1h")
        token[role] = out.strip()
        expect(re.fullmatch(r"cbl_\w+", token[role]), out)

    def remote(*words, role="member", status=0, **more):
        return user.run(*words, status=status, CORBEL_HOST=url, CORBEL_TOKEN=token[role], **more)

    remote("--project", "red", "list")
    expect(json.loads(remote("list", "--json")[0]) == [], "another project's instance is seen")
    remote("show", "vm", status=3)
    remote("delete", "vm", "--force", status=3)
    remote("--project", "default", "list", status=3)
    _, err = remote("run", "busybox", "--detach", role="viewer", status=4)
    expect("role" in err, err)
    remote("run", "busybox", "--engine", ENGINE, "--type", "micro", "--detach", "--wait")
    _, err = remote("run", "busybox", "--name", "second", "--type", "micro", "--detach", status=4)
    expect("instances" in err, f"the quota is not named: {err}")
    user.run("--project", "red", "stop", "busybox")
    remote("delete", "busybox")
    _, err = user.run("list", status=4, CORBEL_HOST=url)
    expect("CORBEL_TOKEN" in err, err)
    user.run("list", status=4, CORBEL_HOST=url, CORBEL_TOKEN=token["member"][:-1])
    user.run("list", status=2, CORBEL_HOST=url, CORBEL_TOKEN="cbl_a\r\nX-Evil: 1")
    user.run("quota", "set", "red", "--instances", "none", "--memory", "4G")
    row = next(row for row in Shared.json("quota", "list") if row["name"] == "red")
    expect(row["max_instances"] == 0 and row["max_memory_mib"] == 4096, row)
    user.run("quota", "set", "red", status=2)
    user.run("quota", "set", "red", "--nics", "1", "--alarms", "none", "--snapshots", "2", "--keys", "3")
    row = next(row for row in Shared.json("quota", "list") if row["name"] == "red")
    expect((row["max_nics"], row["max_alarms"], row["max_snapshots"], row["max_keys"]) == (1, 0, 2, 3), row)
    user.run("--project", "red", "nic", "create", "only")
    _, err = user.run("--project", "red", "nic", "create", "more", status=4)
    expect("1 network cards" in err, err)
    user.run("--project", "red", "nic", "delete", "only")
    role = place.home / "role.json"
    role.write_text('[{"effect": "allow", "actions": ["instance.list"], "resources": ["*"]}]')
    user.run("role", "create", "lister", role)
    expect("lister" in user.run("role", "list")[0] and "instance.list" in user.run("role", "show", "lister")[0], "the role")
    token["lister"] = user.run("token", "create", "l", "--role", "lister", "--project", "red")[0].strip()
    remote("list", role="lister")
    remote("volume", "list", role="lister", status=4)
    role.write_text('{"statements": [{"effect": "deny", "actions": ["*"], "resources": ["*"]}]}')
    user.run("role", "set", "lister", role)
    remote("list", role="lister", status=4)
    role.write_text("[")
    user.run("role", "set", "lister", role, status=2)
    user.run("role", "delete", "lister", status=4)
    for row in Shared.json("token", "list"):
        user.run("token", "delete", row["id"])
    user.run("role", "delete", "lister")
    remote("list", status=4)
    user.run("project", "delete", "red")
    secret = os.path.join(user.home, "password")
    with open(secret, "w", encoding="utf-8") as file:
        file.write("long enough\n")
    user.place.own(secret)
    user.run("user", "create", "ann", "--role", "viewer", "--password-file", secret)
    user.run("user", "create", "bob", status=2)  # standard input is empty
    expect([row["name"] for row in Shared.json("user", "list")] == ["ann"], "users")
    user.run("user", "delete", "ann")
    user.run("type", "create", "tiny", "--cpus", "1", "--memory", "128M")
    user.run("type", "create", "huge", "--cpus", "1000", "--memory", "128M", status=2)
    expect(Shared.json("type", "show", "tiny")["memory_mib"] == 128, "the type")
    user.run("type", "delete", "tiny")
    user.run("key", "create", "mine", secret, status=2)
    user.run("key", "create", "mine", "/nonexistent", status=2)


def keep_alarms(_place):
    user = Shared.user
    user.run("alarm", "create", "busy", "--instance", "vm", "--metric", "cpu_percent", "--threshold", "90",
             "--for", "5m", "--tag", "k=v")
    user.run("alarm", "create", "busy", "--instance", "vm", "--metric", "cpu_percent", "--threshold", "1", status=4)
    row = Shared.json("alarm", "show", "busy")
    expect((row["metric"], row["comparison"], row["threshold"], row["for_s"], row["action"]) ==
           ("cpu_percent", "above", 90, 300, "none"), row)
    expect(row["instance"] == Shared.json("show", "vm")["id"] and row["tags"] == {"k": "v"}, row)
    user.run("alarm", "create", "full", "--tagged", "env=test", "--metric", "memory_used_bytes", "--threshold", "2G",
             "--comparison", "below", "--for", "0", "--action", "reboot", "--webhook", "https://example.org/")
    row = Shared.json("alarm", "show", "full")
    expect((row["tag"], row["threshold"], row["comparison"], row["for_s"], row["action"], row["webhook"]) ==
           ("env=test", 2 << 30, "below", 0, "reboot", "https://example.org/"), row)
    head, *rows = user.run("alarm", "list")[0].splitlines()
    expect(head.split()[:3] == ["NAME", "STATE", "METRIC"] and
           [row.split()[0] for row in rows] == ["busy", "full"], f"{head}\n{rows}")
    expect([row["name"] for row in Shared.json("alarm", "list", "--filter", "tag.k=v")] == ["busy"], "the filter")
    good = {"--instance": "vm", "--metric": "cpu_percent", "--threshold": "1"}
    for wrong, status, names in (
            ({"--instance": None}, 2, "--instance"), ({"--tagged": "env=test"}, 2, "--tagged"),
            ({"--metric": None}, 2, "--metric"), ({"--metric": "happiness"}, 2, "metric"),
            ({"--threshold": "many"}, 2, "--threshold"), ({"--for": "soon"}, 2, "--for"),
            ({"--for": "13h"}, 2, "for_s"), ({"--comparison": "beside"}, 2, "comparison"),
            ({"--action": "explode"}, 2, "action"), ({"--webhook": "ftp://example.org"}, 2, "webhook"),
            ({"--instance": "nothing"}, 3, "nothing"), ({"--instance": None, "--tagged": "test"}, 2, "tag")):
        words = [word for pair in {**good, **wrong}.items() if pair[1] for word in pair]
        _, err = user.run("alarm", "create", "none", *words, status=status)
        expect(names in err, f"{words}: {err}")
    expect(user.run("complete", "alarm", "show", "b")[0].split() == ["busy"], "a name is completed")
    expect(user.run("complete", "alarm", "create", "x", "--metric", "steal")[0].split() == ["steal_percent"], "metrics")
    for name in ("busy", "full"):
        user.run("alarm", "delete", name)
    user.run("alarm", "show", "busy", status=3)


def keep_hooks_and_usage(_place):
    user = Shared.user
    secret = user.run("hook", "create", "ops", "https://127.0.0.1:1/ops", "--action", "hookless.", "--level", "warning",
                      "--tag", "k=v")[0].strip()
    row = Shared.json("hook", "show", "ops")
    expect((row["webhook"], row["action"], row["level"], row["state"], row["tags"], row["deliveries"]) ==
           ("https://127.0.0.1:1/ops", "hookless.", "warning", "new", {"k": "v"}, []), row)
    expect(len(secret) == 64 and secret not in json.dumps(row), "the secret is shown again")
    user.run("hook", "create", "all", "https://127.0.0.1:1/all", "--action", "volume.")
    head, *rows = user.run("hook", "list")[0].splitlines()
    expect(head.split()[:2] == ["NAME", "STATE"] and [row.split()[0] for row in rows] == ["ops", "all"], f"{head}\n{rows}")
    user.run("volume", "create", "hooked", "1G")
    while not (last := Shared.json("hook", "show", "all")["deliveries"]):
        pass  # the next count
    expect(last[0]["state"] == "lost" and "--local-webhooks" in last[0]["error"], last)
    shown = user.run("hook", "show", "all")[0]
    expect("volume.create" in shown and "WHY NOT" in shown and "--local-webhooks" in shown, shown)
    user.run("volume", "delete", "hooked")
    for words, names in ((("ftp://example.org",), "webhook"), (("http://x", "--level", "loud"), "level")):
        expect(names in user.run("hook", "create", "none", *words, status=2)[1], words)
    expect(user.run("complete", "hook", "show", "o")[0].split() == ["ops"], "a name is completed")
    for name in ("ops", "all"):
        user.run("hook", "delete", name)
    user.run("hook", "show", "ops", status=3)

    def used():
        return {item["id"]: item["vcpu_hours"] for item in Shared.json("usage", "--by", "instance")["items"]}

    machine = Shared.json("show", "vm")["id"]
    while not used().get(machine):
        pass  # the next count
    head, *rows = user.run("usage")[0].splitlines()
    expect(head.split()[:3] == ["PROJECT", "VCPU", "HOURS"] and any(row.startswith("default ") for row in rows), f"{head}\n{rows}")
    head, row = user.run("usage", "--by", "day", "--since", "1h")[0].splitlines()[:2]
    expect(head.split()[0] == "TIME" and re.match(r"\d{4}-\d\d-\d\dT00:00Z ", row), f"{head}\n{row}")
    expect(user.run("usage", "--csv")[0].startswith("project,project_name,vcpu_hours,"), "no CSV")
    expect("by" in user.run("usage", "--by", "moon", status=2)[1], "by the moon")
    user.run("usage", "--since", "1h", "--until", "2h", status=2)


def sign_in_by_link(_place):
    user = Shared.user
    link = urllib.parse.urlsplit(user.run("web")[0].strip())
    expect(link.hostname == "127.0.0.1", link)

    def get(path, **headers):
        client = http.client.HTTPConnection(link.hostname, link.port, timeout=LIMIT_S)
        with contextlib.closing(client):
            client.request("GET", path, headers=headers)
            answer = client.getresponse()
            return answer, answer.read()

    answer, _ = get(link.path[:-1] + ("a" if link.path[-1] != "a" else "b"))
    expect(answer.status == 404, "a wrong link signs in")
    answer, _ = get(link.path)
    cookie = answer.getheader("set-cookie") or ""
    expect(answer.status == 303 and answer.getheader("location") == "/" and "HttpOnly" in cookie, cookie)
    answer, data = get("/v1/session", Cookie=cookie.split(";")[0])
    expect(answer.status == 200 and json.loads(data)["role"] == "admin", data)
    answer, _ = get(link.path)
    expect(answer.status == 404, "a link signs in twice")


def refuse_what_is_wrong(_place):
    user = Shared.user
    for words, status in (
            (("show", "a/b"), 2), (("show", ".."), 2), (("show", ""), 2), (("show", "a" * 200), 2),
            (("show", "nothing"), 3), (("show", "-x"), 2), (("logs", "nothing"), 3), (("start",), 2),
            (("start", "nothing"), 3), (("stop", "vm", "--all"), 2), (("delete",), 2),
            (("run", "busybox", "--cpus", "0x2"), 2), (("run", "busybox", "--name", "a b"), 2),
            (("run", "busybox", "--name", "x", "--type", "galactic"), 3),
            (("run", "busybox", "--name", "x", "--engine", "magic"), 2),
            (("run", "busybox", "--name", "x", "--forward", "1:2:3"), 2),
            (("run", "busybox", "--name", "x", "--volume", "nothing"), 3),
            (("run", "busybox", "--name", "x", "--memory", "250G"), 4),
            (("run", "busybox", "--name", "x", "--restart", "sometimes"), 2),
            (("operation", "wait", "op-nothing"), 3), (("operation", "cancel", "op-nothing"), 3),
            (("cp", "a", "b"), 2), (("cp", "vm:/etc/passwd", "x"), 4), (("exec", "vm"), 2),
            (("exec", "vm", "--", "true"), 4), (("completion", "tcsh"), 2),
            (("--host", "ftp://x", "list"), 2), (("--host", "unix:/nowhere", "list"), 5),
            (("--host", "http://127.0.0.1:1", "list"), 5), (("--host",), 2), (("--project", "nope", "list"), 3)):
        _, err = user.run(*words, status=status)
        lines = [line for line in err.splitlines() if line.startswith("corbel: ")]
        expect(len(lines) == 1 and len(lines[0]) > 20, f"{words}: {err}")
    expect([row["name"] for row in Shared.json("list")] == ["vm"], "something was made")


def outlive_the_daemon(_place):
    """kill -9: the machine goes on, the next verb starts a daemon that knows it, an attached console
    finds its way back."""
    user = Shared.user
    machine = Shared.json("show", "vm")["pid"]
    console = subprocess.Popen(user.place.wrap([user.corbel, "run", "busybox", "--name", "attached", "--engine",
                                                ENGINE, "--type", "micro"]), cwd=user.home, env=user.env,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while b"corbel-busybox: ready" not in seen:
        piece = os.read(console.stdout.fileno(), 65536)
        expect(piece, f"the console ended: {seen[-500:]}")
        seen += piece
    old = kill_daemon(user)
    out, err = user.run("list", "--json")
    expect("started corbeld" in err and daemon_pid(user) != old, err)
    rows = {row["name"]: row for row in json.loads(out)}
    expect(rows["vm"]["pid"] == machine and rows["vm"]["state"] == "running", rows)
    os.kill(machine, 0)
    # The console that was attached: what is typed arrives, what the guest does is seen, and the end.
    console.stdin.write(b"echo back-$((40 + 2)); poweroff -f\n")
    console.stdin.close()
    rest = console.stdout.read()
    expect(console.wait(LIMIT_S) == 0 and b"back-42" in rest, rest[-500:] + console.stderr.read())
    console.stdout.close()
    console.stderr.close()
    expect(Shared.state("attached") == "stopped", "it is not seen to have ended")
    user.run("delete", "attached")


def run_at_once(_place):
    """Two daemons or two machines of one name never come of it."""
    user = Shared.user
    user.run("daemon", "stop")
    user.run("daemon", "status", status=5)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: user.run("list", "--json"), range(6)))
    expect(sum("started corbeld" in err for _, err in results) == 1, f"{[err for _, err in results]}")

    def run_one(_):
        process = user.start("run", "busybox", "--name", "race", "--engine", ENGINE, "--type", "micro", "--detach")
        process.communicate(timeout=LIMIT_S)
        return process.returncode

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(run_one, range(4)))
    expect(statuses == [0, 4, 4, 4], f"{statuses}")
    user.run("delete", "race", "--force")


def follow_and_complete(_place):
    user = Shared.user
    stream = user.start("events", "--follow", "--json", "--filter", "action=instance.paused")
    lines = []
    while not lines:  # the stream tells of what happens once it is there
        user.run("pause", "vm")
        if select.select([stream.stdout], [], [], 1)[0]:
            lines.append(json.loads(stream.stdout.readline()))
        user.run("resume", "vm")
    stream.kill()
    stream.communicate()
    expect(lines[0]["action"] == "instance.paused", lines)
    expect(any(row["action"] == "instance.paused" for row in Shared.json("events")), "events")

    def complete(*words):
        return user.run("complete", *words)[0].split()

    expect("restart" in complete("re") and "run" not in complete("re"), "verbs")
    expect(set(complete("quota", "")) == {"list", "set"}, "a group's verbs")
    expect(complete("stop", "v") == ["vm"] and complete("run", "") == ["busybox"], "names")
    expect(complete("run", "--eng") == ["--engine"] and "soft" in complete("run", "--engine", ""), "options")
    expect(complete("exec", "vm", "--", "r") == [], "a command's own words")
    script, _ = user.run("completion", "bash")
    shell = f"corbel() {{ '{user.corbel}' \"$@\"; }}\n{script}\nCOMP_WORDS=(corbel console v)\nCOMP_CWORD=2\n" \
            "_corbel\nprintf '%s' \"${COMPREPLY[*]}\""
    result = subprocess.run(user.place.wrap(["bash", "-c", shell]), env=user.env, cwd=user.home,
                            stdout=subprocess.PIPE, text=True, check=True)
    expect(result.stdout == "vm", result.stdout)


def end(_place):
    user = Shared.user
    user.run("delete", "--all", "--force")
    expect(Shared.json("list") == [], "an instance is left")
    user.__exit__()


TESTS = [
    ("a machine runs, is listed and shown", run_and_list),
    ("a machine goes through all states", live_through_all_states),
    ("limits are set, changed while a machine runs, and shown", limit_machines),
    ("logs outlive a machine's end, not its deletion", keep_logs),
    ("ports of a running machine are forwarded", forward_ports),
    ("volumes and snapshots are kept", keep_volumes_and_snapshots),
    ("network cards are kept", keep_nics),
    ("projects, quotas, users and tokens are kept, and hold", keep_accounts),
    ("alarms are kept", keep_alarms),
    ("hooks tell, and usage is told", keep_hooks_and_usage),
    ("a link signs in once", sign_in_by_link),
    ("what is wrong is refused in one sentence", refuse_what_is_wrong),
    ("machines and consoles outlive the daemon", outlive_the_daemon),
    ("verbs at once make one daemon and one machine", run_at_once),
    ("events are followed, words completed", follow_and_complete),
    ("nothing is left", end),
]

if __name__ == "__main__":
    run_tests(TESTS)
