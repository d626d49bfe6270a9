#!/usr/bin/python3
"""A real Debian as an instance: cloud-init with the instance's data, and Debian's own guest agent.

One machine serves all tests in order; each leaves it running.
"""

import base64
import json
import os
import pathlib
import threading
import urllib.parse

from harness import expect, run_tests
from platform_rig import Platform

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")


class Shared:
    """The daemon and the machine that all tests use."""

    platform = None
    instance = None


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


def execute(*command, **more):
    """Runs a program in the guest to its end."""
    p, path = Shared.platform, f"/v1/instances/{Shared.instance}/exec"
    answer = p.ok("POST", path, {"command": list(command), **more})["exec"]
    while answer["state"] == "running":
        answer = p.ok("GET", f"{path}/{answer['pid']}?wait_ms=30000")["exec"]
    return answer


def start(place):
    p = Shared.platform = Platform(place)
    p.use_image("debian")
    answer = p.ok("POST", "/v1/instances", {"name": "first", "image": "debian", "engine": ENGINE,
                                            "memory_mib": 1024, "cpus": 2})
    p.finish(answer)
    Shared.instance = answer["instance"]["id"]
    now = watch(p, Shared.instance, lambda o: o.get("agent") == "connected" and o.get("address"))
    expect(now["address"] == "10.0.2.15", now)
    expect(now["agent_version"].startswith("7."), now)


def know_the_guest(_place):
    agent = Shared.platform.ok("GET", f"/v1/instances/{Shared.instance}/agent")["agent"]
    expect("Debian" in agent["system"], agent)
    cards = {i["name"]: i for i in agent["interfaces"]}
    expect("lo" in cards and len(cards) == 2, agent)
    card = next(i for name, i in cards.items() if name != "lo")
    expect(card["mac"] == "52:54:00:12:34:56", agent)
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
        p.ok("PUT", f"{path}?path={place}&offset={at}", data[at:at + (1 << 20)],
             headers={"Content-Type": "application/octet-stream"})
    got = b""
    while len(got) < len(data):
        status, piece = p.call("GET", f"{path}?path={place}&offset={len(got)}")
        expect(status == 200 and piece, f"{status} after {len(got)} bytes")
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
    ("the agent tells of the guest and its network", know_the_guest),
    ("programs run in the guest; their input and output pass as they are", run_programs),
    ("files pass both ways in pieces", copy_files),
    ("callers take turns", take_turns),
    ("a password is set", set_a_password),
    ("an agent that goes is noticed", lose_and_find_the_agent),
    ("without an agent the power button stops it", stop_by_the_power_button),
    ("all is cleared away", end),
]

if __name__ == "__main__":
    run_tests(TESTS)
