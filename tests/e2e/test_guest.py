#!/usr/bin/python3
"""A real Debian as an instance: cloud-init with the instance's data, and Debian's own guest agent.

One machine serves all tests in order; each leaves it running.
"""

import base64
import json
import os
import pathlib
import subprocess
import threading
import urllib.parse

from harness import LIMIT_S, Failure, expect, run_tests
from platform_rig import Platform

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")


class Shared:
    """The daemon and the machine that all tests use."""

    platform = None
    instance = None
    key = None


def watch(platform, instance, wanted):
    """Follows the instance by the event stream until it is as wanted; the object."""
    while True:
        page = platform.ok("GET", "/v1/instances?limit=1000")
        now = next(row for row in page["items"] if row["id"] == instance)
        expect(now["state"] == "running", now)
        if wanted(now):
            return now
        # The next change of any object, or a sign of life.
        platform.next_change(page["revision"], instance)


def patient(method, path, body=None, **more):
    """A call that is made again while the agent is busy: a slow guest takes its time."""
    while True:
        status, answer = Shared.platform.call(method, path, body, **more)
        if status != 503:
            expect(200 <= status < 300, f"{method} {path}: {status} {answer}")
            return answer


def execute(*command, **more):
    """Runs a program in the guest to its end."""
    path = f"/v1/instances/{Shared.instance}/exec"
    answer = patient("POST", path, {"command": list(command), **more})["exec"]
    while answer["state"] == "running":
        answer = patient("GET", f"{path}/{answer['pid']}?wait_ms=30000")["exec"]
    return answer


USER_DATA = """#cloud-config
write_files:
 - path: /root/from-user-data
   permissions: "0600"
   content: a secret of the project
runcmd:
 - [sh, -c, "echo ran >> /root/runs"]
"""


def start(place):
    """With a pair that the platform makes, and user data. The first boot runs cloud-init."""
    p = Shared.platform = Platform(place)
    p.use_image("debian")
    made = p.ok("POST", "/v1/keys", {"name": "mine"})["key"]
    Shared.key = pathlib.Path(p.home) / "key"
    Shared.key.write_text(made["private_key"])
    Shared.key.chmod(0o600)
    kept = p.ok("GET", "/v1/keys/mine")
    expect("private_key" not in kept and kept["public_key"] == made["public_key"], kept)
    told = subprocess.run(["ssh-keygen", "-l", "-f", Shared.key], check=True, text=True,
                          stdout=subprocess.PIPE).stdout.split()
    expect(told[1] == kept["fingerprint"], (told, kept))
    wanted = {"name": "first.machine_1", "image": "debian", "engine": ENGINE, "memory_mib": 1024,
              "cpus": 2, "key": "mine", "user_data": USER_DATA}
    p.refused(404, "POST", "/v1/instances", {**wanted, "key": "other"}, field="key")
    p.refused(400, "POST", "/v1/instances", {**wanted, "user_data_base64": "eA=="}, field="user_data")
    p.refused(400, "POST", "/v1/instances", {**wanted, "user_data": "x" * 65537}, field="user_data")
    for line in ("ssh-ed25519 AAAA", "ssh-rsa " + made["public_key"].split()[1], "text",
                 "from=\"*\" " + made["public_key"], made["public_key"].replace(" ", "\n", 1)):
        p.refused(400, "POST", "/v1/keys", {"name": "bad", "public_key": line.ljust(20)})
    answer = p.ok("POST", "/v1/instances", wanted)
    p.finish(answer)
    p.ok("DELETE", "/v1/keys/mine")  # the instance has a copy
    Shared.instance = answer["instance"]["id"]
    now = watch(p, Shared.instance, lambda o: o.get("agent") == "connected" and o.get("address"))
    expect(now["address"] == "10.0.2.15", now)
    expect(now["agent_version"].startswith("7."), now)
    expect(USER_DATA not in json.dumps(now) and "public_key" not in now, now)


def ssh(command):
    port = Shared.platform.ok("GET", f"/v1/instances/{Shared.instance}")["ssh_port"]
    done = subprocess.run(["ssh", "-i", str(Shared.key), "-o", "UserKnownHostsFile=/dev/null",
                           "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
                           "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
                           "-p", str(port), "root@127.0.0.1", command],
                          check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S)
    expect(done.returncode == 0, f"{command!r}: {done.returncode} {done.stdout}")
    return done.stdout


def begin_with_data(_place):
    done = execute("cloud-init", "status", "--wait")
    expect("status: done" in done["stdout"], done)
    expect(ssh("cat /root/from-user-data") == "a secret of the project", "user data")
    expect(ssh("hostname -f").strip() == "first.machine-1", ssh("hostname -f"))
    expect(ssh("cat /run/cloud-init/.instance-id").strip() == Shared.instance, "instance-id")
    expect(ssh("cat /root/runs") == "ran\n", "runcmd")
    expect("ro" in ssh("lsblk -no RO,LABEL | grep CIDATA && echo ro"), ssh("lsblk -o RO,LABEL"))
    expect(" 1 " in f" {ssh('lsblk -no RO,LABEL | grep CIDATA').split()[0]} ", "may be written")


def keep_data_private(_place):
    """Neither the API nor other users of the host see user data."""
    p, root, holders = Shared.platform, pathlib.Path(Shared.platform.home), 0
    secrets = (USER_DATA.encode(), base64.b64encode(USER_DATA.encode()))
    for path in root.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 64 << 20:
            continue
        data = path.read_bytes()
        if any(secret in data for secret in secrets):
            holders += 1
            ways = [path, *(above for above in path.parents if root in above.parents)]
            expect(any(way.stat().st_mode & 0o077 == 0 for way in ways), f"others can read {path}")
            expect(path.name != "seed.img" or path.stat().st_mode & 0o777 == 0o600, path)
    expect(holders >= 2, "neither the record nor the volume was found")
    for answer in (p.ok("GET", "/v1/instances"), p.ok("GET", "/v1/events?limit=1000"),
                   p.ok("GET", "/v1/operations?limit=1000")):
        expect("from-user-data" not in json.dumps(answer), "told")
    p.refused(400, "GET", "/v1/instances?has_user_data=true")


def boot_again(_place):
    """As the same instance: what is done once is not done again; a new name is taken."""
    p = Shared.platform
    p.finish(p.ok("POST", f"/v1/instances/{Shared.instance}/stop"))
    p.ok("PATCH", f"/v1/instances/{Shared.instance}", {"name": "renamed"})
    p.finish(p.ok("POST", f"/v1/instances/{Shared.instance}/start"))
    watch(p, Shared.instance, lambda o: o.get("agent") == "connected")
    execute("cloud-init", "status", "--wait")
    expect(ssh("hostname").strip() == "renamed", ssh("hostname"))
    expect(ssh("cat /root/runs") == "ran\n", "runcmd ran again")


def know_the_guest(_place):
    agent = Shared.platform.ok("GET", f"/v1/instances/{Shared.instance}/agent")["agent"]
    expect("Debian" in agent["system"], agent)
    cards = {i["name"]: i for i in agent["interfaces"]}
    expect("lo" in cards and len(cards) == 2, agent)
    card = next(i for name, i in cards.items() if name != "lo")
    nic = Shared.platform.ok("GET", f"/v1/instances/{Shared.instance}")["nic"]
    expect(card["mac"] == Shared.platform.ok("GET", f"/v1/nics/{nic}")["mac"], agent)
    expect({"address": "10.0.2.15", "family": "ipv4", "prefix": 24} in card["addresses"], agent)


def run_programs(_place):
    p, path = Shared.platform, f"/v1/instances/{Shared.instance}/exec"
    done = execute("sh", "-c", "echo out; echo err >&2; exit 3")
    expect((done["exit_code"], done["stdout"], done["stderr"]) == (3, "out\n", "err\n"), done)
    done = execute("cat", input="übergeben\n")
    expect(done["stdout"] == "übergeben\n", done)
    data = bytes(range(256))
    done = execute("cat", input_base64=base64.b64encode(data).decode())
    expect(base64.b64decode(done["stdout_base64"]) == data and "stdout" not in done, done)
    done = execute("env", environment=["ONLY=this"])
    expect(done["stdout"] == "ONLY=this\n", done)
    done = execute("sh", "-c", "kill -9 $$")
    expect(done["signal"] == 9 and "exit_code" not in done, done)
    # Begun, and asked for later: its end is told once.
    begun = p.ok("POST", path, {"command": ["sleep", "0.5"], "wait_ms": 0})["exec"]
    expect(begun["state"] == "running", begun)
    ended = p.ok("GET", f"{path}/{begun['pid']}")["exec"]
    expect(ended["state"] == "exited" and ended["exit_code"] == 0, ended)
    p.refused(404, "GET", f"{path}/{begun['pid']}")
    p.refused(404, "POST", path, {"command": ["/no/such/program"]})
    p.refused(400, "POST", path, {"command": []}, field="command")
    p.refused(400, "POST", path, {"command": ["true"], "input_base64": "%"}, field="input_base64")
    p.refused(404, "GET", f"{path}/zero")
    # More than an answer holds is refused, and the agent is well afterwards.
    status, answer = p.call("POST", path, {"command": ["head", "-c", "7000000", "/dev/zero"]})
    expect(status in (200, 503), answer)
    expect(execute("true")["exit_code"] == 0, "the agent is lost")


def copy_files(_place):
    p, path = Shared.platform, f"/v1/instances/{Shared.instance}/files"
    data = os.urandom((2 << 20) + 12345)
    place = urllib.parse.quote("/root/näme & more")
    for at in range(0, len(data), 1 << 20):
        patient("PUT", f"{path}?path={place}&offset={at}", data[at:at + (1 << 20)],
                headers={"Content-Type": "application/octet-stream"})
    got = b""
    while len(got) < len(data):
        piece = patient("GET", f"{path}?path={place}&offset={len(got)}")
        expect(piece, f"nothing after {len(got)} bytes")
        got += piece
    expect(got == data, "other bytes came back")
    expect(execute("stat", "-c", "%s", "/root/näme & more")["stdout"] == f"{len(data)}\n", "size")
    p.ok("PUT", f"{path}?path=/root/short", b"one\n")
    p.ok("PUT", f"{path}?path=/root/short", b"2\n")
    expect(p.call("GET", f"{path}?path=/root/short") == (200, b"2\n") or
           p.call("GET", f"{path}?path=/root/short") == (200, 2), "not written anew")
    p.refused(404, "GET", f"{path}?path=/root/absent")
    p.refused(400, "GET", f"{path}?path=relative", field="path")
    p.refused(400, "GET", path, field="path")
    p.refused(400, "GET", f"{path}?path=/etc/passwd&length=99999999", field="length")


def take_turns(_place):
    """Many callers at once: each gets its own answer."""
    failures = []

    def call(number):
        try:
            done = execute("echo", str(number))
            expect(done["stdout"] == f"{number}\n", f"{number}: {done}")
        except Exception as error:  # told by the test's thread
            failures.append(error)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(not failures, failures)


def set_a_password(_place):
    Shared.platform.ok("POST", f"/v1/instances/{Shared.instance}/password",
                       {"user": "root", "password": "a secret of its own"})
    shadow = execute("sh", "-c", "getent shadow root | cut -d: -f2")["stdout"].strip()
    done = execute("perl", "-e", "print crypt('a secret of its own', $ARGV[0])", shadow)
    expect(done["stdout"] == shadow, (done, shadow))


def freeze_for_a_snapshot(_place):
    """Its file systems are written out for a snapshot, and go on."""
    p = Shared.platform
    p.finish(p.ok("POST", "/v1/snapshots", {"name": "still", "instance": Shared.instance}))
    now = p.ok("GET", "/v1/snapshots/still")
    expect(now["live"] and now["frozen"], now)
    expect(execute("sh", "-c", "echo on > /root/goes && sync")["exit_code"] == 0, "its file systems are still frozen")
    p.finish(p.ok("DELETE", "/v1/snapshots/still"))


def use_the_commands(_place):
    """corbel exec and cp, as a user types them."""
    user, name = Shared.platform, Shared.instance
    out, err = user.run("exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 7", status=7)
    expect(out == "out\n" and err == "err\n", (out, err))
    source = pathlib.Path(user.home, "words")
    source.write_text("three small words\n", encoding="utf-8")
    user.place.own(source)
    out, _ = user.run("exec", name, "--input", source, "--", "wc", "-w")
    expect(out.strip() == "3", out)
    user.run("exec", name, "--", "sh", "-c", "kill -9 $$", status=128 + 9)
    source = pathlib.Path(user.home, "source")
    source.write_bytes(os.urandom(3 << 20) + b"end")
    user.place.own(source)
    user.run("cp", source, f"{name}:/root/copy")
    user.run("cp", f"{name}:/root/copy", "back")
    expect(pathlib.Path(user.home, "back").read_bytes() == source.read_bytes(), "not what was copied")
    out, _ = user.run("exec", name, "--input", source, "--", "wc", "-c", status=2)
    user.run("exec", name, "--", "rm", "/root/copy")
    user.run("cp", f"{name}:/root/copy", "gone", status=3)
    expect(not pathlib.Path(user.home, "gone").exists(), "half a file is left")
    expect(not list(pathlib.Path(user.home).glob("*.part")), "a part is left")
    user.run("cp", "/nonexistent", f"{name}:/root/", status=2)


def lose_and_find_the_agent(_place):
    p, path = Shared.platform, f"/v1/instances/{Shared.instance}"
    p.call("POST", f"{path}/exec", {"command": ["systemctl", "--no-block", "stop", "qemu-guest-agent"]})
    watch(p, Shared.instance, lambda o: o["agent"] == "absent")
    p.refused(409, "POST", f"{path}/exec", {"command": ["true"]}, code="conflict", field="agent")


def stop_by_the_power_button(_place):
    """Without the agent, which the test before has stopped."""
    p = Shared.platform
    p.finish(p.ok("POST", f"/v1/instances/{Shared.instance}/stop"))
    now = p.ok("GET", f"/v1/instances/{Shared.instance}")
    expect("agent" not in now and "address" not in now, now)
    events = p.ok("GET", f"/v1/events?target={Shared.instance}&limit=1000")["items"]
    actions = [event["action"] for event in events]
    expect("instance.agent" in actions and "instance.address" in actions, actions)


def end(_place):
    Shared.platform.__exit__()


TESTS = [
    ("debian's agent answers, and its address is known", start),
    ("user data, key and name reach it by cloud-init; ssh with the key works", begin_with_data),
    ("user data is nobody else's to read", keep_data_private),
    ("the agent tells of the guest and its network", know_the_guest),
    ("programs run in the guest; their input and output pass as they are", run_programs),
    ("files pass both ways in pieces", copy_files),
    ("callers take turns", take_turns),
    ("a password is set", set_a_password),
    ("a second boot is of the same instance, under its new name", boot_again),
    ("a snapshot is of file systems that are written out", freeze_for_a_snapshot),
    ("corbel exec and cp", use_the_commands),
    ("an agent that goes is noticed", lose_and_find_the_agent),
    ("without an agent the power button stops it", stop_by_the_power_button),
    ("all is cleared away", end),
]

if __name__ == "__main__":
    run_tests(TESTS)
