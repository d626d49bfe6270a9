#!/usr/bin/python3
"""The REST interface of corbeld as scripts use it, and as those do who mean harm: real machines, the
unix socket, tokens by TCP, event streams and consoles."""

import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import sys

from harness import LIMIT_S, expect, run_tests
from platform_rig import Platform, Socket

FLOOD = 10000 if "--flood" in sys.argv[1:] else 600


def drive_an_instance(place):
    with Platform(place) as platform:
        machine = platform.launch("first", tags={"env": "test"})
        shown = platform.ok("GET", "/v1/instances/first")
        expect(shown["id"] == machine and shown["state"] == "running", f"{shown}")
        expect(shown["engine_used"] == "soft", f"{shown}")
        statistics = platform.ok("GET", f"/v1/instances/{machine}/statistics")
        expect(isinstance(statistics, dict) and statistics, f"{statistics}")
        # More than its machine can have waits for a restart, and says so.
        platform.finish(platform.ok("PATCH", f"/v1/instances/{machine}", {"cpus": 2}))
        shown = platform.ok("GET", f"/v1/instances/{machine}")
        expect(shown["restart_needed"] and (shown["cpus"], shown["cpus_now"]) == (2, 1), f"{shown}")
        for action, state in (("pause", "paused"), ("resume", "running"), ("restart", "running"),
                              ("stop", "stopped"), ("start", "running")):
            body = {"force": True} if action in ("stop", "restart") else None
            platform.finish(platform.ok("POST", f"/v1/instances/{machine}/{action}", body))
            expect(platform.state(machine) == state, f"{action}: {platform.state(machine)}")
        shown = platform.ok("GET", f"/v1/instances/{machine}")
        expect("restart_needed" not in shown and shown["cpus_now"] == 2, f"{shown}")
        platform.refused(409, "POST", f"/v1/instances/{machine}/start", code="conflict")
        platform.refused(400, "POST", f"/v1/instances/{machine}/explode")
        platform.ok("PATCH", f"/v1/instances/{machine}", {"tags": {"env": "prod"}})
        for query, count in (("tag.env=prod", 1), ("tag.env=test", 0), ("state=running", 1)):
            page = platform.ok("GET", f"/v1/instances?{query}")
            expect(len(page["items"]) == count, f"{query}: {page}")
        platform.finish(platform.ok("DELETE", f"/v1/instances/{machine}"))
        platform.refused(404, "GET", f"/v1/instances/{machine}", code="not-found")
        done = [event["action"] for event in platform.ok("GET", "/v1/events")["items"]]
        expect(any("instance" in action for action in done), f"{done}")


def serve_the_good_in_a_flood(place):
    """Thousands of connections that want nothing good; those who do are served, and nothing stays behind."""
    count = FLOOD
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    expect(hard == resource.RLIM_INFINITY or hard >= count + 200, f"this test needs {count + 200} descriptors, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bad = (b"", b"GET /v1/version HT", b"GET /v1/version HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01\x00\xff" * 9,
           b"POST /v1/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{\"na",
           b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 30000, b"GET /" + b"a" * 30000,
           b"GET /v1/version HTTP/1.1\r\n" + b"X: y\r\n" * 5000)
    with Platform(place) as platform:
        token = platform.ok("POST", "/v1/tokens", {"name": "good", "role": "viewer"})["token"]
        platform.ok("GET", "/v1/version", token=token)
        pid = platform.process.pid

        def descriptors():
            return len(os.listdir(f"/proc/{pid}/fd"))

        def memory_kib():
            return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read())[1])

        first, before, peers, most = descriptors(), memory_kib(), [], 0
        for number in range(count):
            peer = socket.create_connection(("127.0.0.1", platform.port), timeout=LIMIT_S)
            peer.setblocking(False)
            with contextlib.suppress(OSError):  # closed already, or it takes no more
                peer.send(bad[number % len(bad)])
            peers.append(peer)
            for slow in peers[number % 97::997]:  # a byte now and then keeps nobody's place
                with contextlib.suppress(OSError):
                    slow.send(b"X")
            if number % 50 == 49:
                # By TCP with a token, and by the socket: neither pays for the others.
                status, answer = platform.call("GET", "/v1/instances", token=token)
                expect(status == 200, f"after {number} connections: {status} {answer}")
                platform.ok("GET", "/v1/instances")
                most = max(most, memory_kib())
        expect(most - before < 96 << 10, f"{most - before} KiB for {count} connections")
        for peer in peers:
            peer.close()
        while descriptors() > first:  # as soon as the server has seen that they are gone
            platform.ok("GET", "/v1/version")
        platform.ok("GET", "/v1/instances", token=token)


def refuse_what_is_malformed(place):
    """Each of these changes nothing, and says what is wrong with which field."""
    with Platform(place) as platform:
        good = {"name": "a", "image": "busybox"}
        for body, code, field in (
                ({**good, "cpus": "two"}, "invalid", "cpus"), ({**good, "cpus": 0}, "invalid", "cpus"),
                ({**good, "cpus": 10**30}, "invalid", None), ({**good, "cpus": 1.5}, "invalid", "cpus"),
                ({**good, "colour": "red"}, "unknown-field", "colour"), ({"name": "a"}, "invalid", "image"),
                ({**good, "name": "../../etc"}, "invalid", "name"), ({**good, "name": ""}, "invalid", "name"),
                ({**good, "name": "a" * 5000}, "invalid", "name"), ({**good, "name": "a\n"}, "invalid", "name"),
                ({**good, "image": "../busybox"}, None, "image"), ({**good, "tags": {"a": 1}}, "invalid", None),
                ({**good, "tags": {str(i): "" for i in range(100)}}, "invalid", "tags"),
                ({**good, "id": "i-mine"}, None, "id"), ({**good, "state": "running"}, None, "state"),
                ({**good, "engine": "magic"}, "invalid", "engine"),
                ({**good, "forwards": [{"host_port": 99999, "guest_port": 1}]}, "invalid", None),
                ({**good, "type": "galactic"}, None, "type")):
            status, answer = platform.call("POST", "/v1/instances", body)
            expect(status in (400, 404), f"{body}: {status} {answer}")
            error = answer["error"]
            expect(code is None or error["code"] == code, f"{body}: {error}")
            expect(field is None or error.get("field") == field, f"{body}: {error}")
        for data in (b"", b"{", b"[]", b"null", b"{\"name\": \"a\", \"name\": \"b\"}", b"\xff\xfe", b"[" * 100000,
                     b"{\"name\": \"\\u0000\", \"image\": \"busybox\"}"):
            platform.refused(400, "POST", "/v1/instances", data, headers={"Content-Type": "application/json"})
        platform.refused(415, "POST", "/v1/instances", b"name=a", headers={"Content-Type": "text/plain"})
        with contextlib.suppress(ConnectionError):  # closed before all of it was sent
            platform.refused(413, "POST", "/v1/instances", b" " * (2 << 20),
                             headers={"Content-Type": "application/json"})
        for path in ("/v1/instances?limit=x", "/v1/instances?limit=-1", "/v1/instances?colour=red",
                     "/v1/instances?cursor=%00", "/v1/operations/x/wait?timeout_ms=99999999", "/v1/host?x=1",
                     "/v1/watch?since=yesterday"):
            with contextlib.suppress(http.client.RemoteDisconnected):  # a NUL closes the connection
                status, answer = platform.call("GET", path)
                expect(status in (400, 404), f"{path}: {status} {answer}")
        for path in ("/v1/nothing", "/v1/instances/..%2f..%2fetc", "/v1/instances/" + "a" * 3000):
            status, answer = platform.call("GET", path)
            expect(status in (400, 404, 414), f"{path}: {status} {answer}")
        platform.refused(405, "PUT", "/v1/instances", {})
        expect(platform.ok("GET", "/v1/instances")["items"] == [], "something was made")


def finish_each_of_many(place):
    """An operation ends when what it asked for is there, not when another's work is done."""
    with Platform(place) as platform:
        machine = platform.launch("busy")
        for weight in range(2, 42, 2):
            for change, (action, state) in ((0, ("pause", "paused")), (1, ("resume", "running"))):
                platform.ok("PATCH", f"/v1/instances/{machine}",
                            {"cpu_weight": weight + change,
                             "forwards": [{"host_port": 0, "guest_port": weight + change}]})
                platform.finish(platform.ok("POST", f"/v1/instances/{machine}/{action}"))
                expect(platform.state(machine) == state, f"{action}: {platform.state(machine)}")
        shown = platform.ok("GET", f"/v1/instances/{machine}")
        expect(shown["cpu_weight"] == 41 and shown["forwards"][0]["guest_port"] == 41, f"{shown}")


def repeat_a_request(place):
    """The same token makes one object, however often and at once; another body with it is refused."""
    with Platform(place) as platform:
        wanted = {"image": "busybox", "desired": "stopped", "name": "once"}
        headers = {"Idempotency-Key": "k-17"}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: platform.ok("POST", "/v1/instances", wanted, headers=headers), range(8)))
        expect(len({answer["instance"]["id"] for answer in answers}) == 1, f"{answers}")
        expect(len(platform.ok("GET", "/v1/instances")["items"]) == 1, "there are two")
        platform.refused(409, "POST", "/v1/instances", {**wanted, "name": "other"}, headers=headers)
        before = platform.ok("GET", "/v1/instances")
        platform.ok("POST", "/v1/instances?dry_run=true", {**wanted, "name": "never"})
        expect(platform.ok("GET", "/v1/instances")["items"] == before["items"], "a dry run changed something")


def follow_changes(place):
    """An event stream tells every change after a page, in order, and goes on after a break."""
    with Platform(place) as platform:
        since = platform.ok("GET", "/v1/instances")["revision"]
        names = [f"m{i}" for i in range(5)]
        for name in names:
            platform.ok("POST", "/v1/instances", {"name": name, "image": "busybox", "desired": "stopped"})
        seen, last = set(), since
        for _ in range(2):  # the second time from where the first was broken off
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(LIMIT_S)
                peer.connect(platform.socket)
                peer.sendall(f"GET /v1/watch HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {last}\r\n\r\n".encode())
                text, wanted = b"", 3 if not seen else len(names)
                while len(seen) < wanted:
                    piece = peer.recv(65536)
                    expect(piece, f"the stream ended: {text[-300:]}")
                    text += piece
                    *events, text = text.split(b"\n\n")
                    for event in events:
                        change = re.search(rb"^id: (\d+)\nevent: (\w+)\ndata: (.*)", event, re.M | re.S)
                        if change:
                            expect(int(change[1]) >= last, f"revisions go back: {change[1]} after {last}")
                            last = int(change[1])
                            if change[2] == b"instance":
                                seen.add(json.loads(change[3])["object"]["name"])
        expect(seen == set(names), f"{seen}")


def reach_the_console(place):
    with Platform(place) as platform:
        machine = platform.launch("talker")
        token = platform.ok("POST", "/v1/tokens", {"name": "t", "role": "member"})["token"]
        path = f"/v1/instances/{machine}/console"
        expect(Socket(platform.port, path).status == 401, "a console without a token")
        console = Socket(platform.port, path, token)
        expect(console.status == 101, f"{console.status}")
        console.send(b"\n")
        console.wait_text(b"# ")
        console.send(b"echo $((6 * 7))-from-inside\n")
        console.wait_text(b"42-from-inside")
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/stop", {"force": True}))
        expect(Socket(platform.port, path, token).status == 409, "the console of a stopped instance")


def address_inside(platform, machine, token):
    """Of the network card, as the guest's kernel has it."""
    console = Socket(platform.port, f"/v1/instances/{machine}/console", token)
    expect(console.status == 101, f"{console.status}")
    console.send(b"\n")
    console.wait_text(b"# ")
    console.send(b"echo $((6 * 7))-$(cat /sys/class/net/eth0/address)-$((6 * 7))\n")
    console.wait_text(b"-42")
    console.close()
    return re.search(rb"42-(.*)-42", console.text)[1].decode()


def keep_an_address(place):
    """NICs: an address of one's own that stays the same, and goes from one instance to another."""
    with Platform(place) as platform:
        token = platform.ok("POST", "/v1/tokens", {"name": "t", "role": "member"})["token"]
        mac = "52:54:00:c0:ff:ee"
        card = platform.ok("POST", "/v1/nics", {"name": "front", "mac": mac})["nic"]
        expect(card["id"].startswith("n-") and (card["mac"], card["network"], card["state"], card["own"]) ==
               (mac, "user", "available", False), f"{card}")
        for wrong in ("52:54:00:c0:ff", mac + ":00", mac.upper(), "52:54:00:c0:ff:eg", "53:54:00:c0:ff:ee",
                      "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", mac.replace(":", "-"), "", " " + mac):
            platform.refused(400, "POST", "/v1/nics", {"name": "wrong", "mac": wrong}, code="invalid", field="mac")
        platform.refused(409, "POST", "/v1/nics", {"name": "second", "mac": mac}, code="conflict", field="mac")
        other = platform.ok("POST", "/v1/nics", {})["nic"]
        expect(re.fullmatch("[0-9a-f][26ae](:[0-9a-f]{2}){5}", other["mac"]) and other["name"] == other["id"],
               f"{other}")

        machine = platform.launch("first", nic="front")
        expect(platform.ok("GET", "/v1/instances/first")["nic"] == card["id"], "it has another")
        shown = platform.ok("GET", "/v1/nics/front")
        expect((shown["state"], shown["instance"]) == ("in-use", machine), f"{shown}")
        expect(address_inside(platform, machine, token) == mac, "the guest has another address")
        body = {"name": "thief", "image": "busybox", "nic": "front", "desired": "stopped"}
        platform.refused(409, "POST", "/v1/instances", body, code="conflict", field="nic")
        platform.refused(404, "POST", "/v1/instances", {**body, "nic": "none"}, field="nic")
        platform.refused(409, "DELETE", "/v1/nics/front", code="conflict")
        platform.refused(409, "PATCH", f"/v1/instances/{machine}", {"nic": other["id"]}, code="conflict")
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/stop", {"force": True}))
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/start"))
        expect(address_inside(platform, machine, token) == mac, "another start, another address")

        # Another while it is stopped: one of its own, which is nobody else's and gone with it.
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/stop", {"force": True}))
        own = platform.ok("PATCH", f"/v1/instances/{machine}", {"nic": None})["instance"]["nic"]
        shown = platform.ok("GET", f"/v1/nics/{own}")
        expect((shown["own"], shown["instance"], shown["state"]) == (True, machine, "in-use"), f"{shown}")
        expect(platform.ok("PATCH", f"/v1/instances/{machine}", {"nic": None})["instance"]["nic"] == own,
               "one of its own for one of its own")
        expect(platform.ok("GET", "/v1/nics/front")["state"] == "available", "it was not let go")
        platform.refused(409, "DELETE", f"/v1/nics/{own}", code="conflict")
        platform.refused(409, "POST", "/v1/instances", {**body, "nic": own}, code="conflict", field="nic")
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/start"))
        expect(address_inside(platform, machine, token) == shown["mac"], "not the address of its own")
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/stop", {"force": True}))
        platform.ok("PATCH", f"/v1/instances/{machine}", {"nic": "front"})
        platform.refused(404, "GET", f"/v1/nics/{own}")

        # What is deleted lets go of the one that was given, and takes its own along.
        alone = platform.ok("POST", "/v1/instances", {**body, "name": "alone", "nic": None})
        platform.finish(alone)
        expect(len(platform.ok("GET", "/v1/nics")["items"]) == 3, "not one of its own")
        for name in ("first", "alone"):
            platform.finish(platform.ok("DELETE", f"/v1/instances/{name}"))
        left = {row["name"]: row for row in platform.ok("GET", "/v1/nics")["items"]}
        expect(set(left) == {"front", other["id"]} and
               all(row["state"] == "available" and "instance" not in row for row in left.values()), f"{left}")
        platform.ok("PATCH", "/v1/nics/front", {"name": "back"})
        platform.ok("DELETE", "/v1/nics/back")
        platform.ok("POST", "/v1/nics", {"name": "front", "mac": mac})

        # A project that has one is not deleted, and its address is nobody else's either.
        platform.ok("POST", "/v1/projects", {"name": "blue"})
        platform.refused(409, "POST", "/v1/nics?project=blue", {"mac": mac}, code="conflict", field="mac")
        platform.ok("POST", "/v1/nics?project=blue", {"name": "card"})
        platform.refused(409, "DELETE", "/v1/projects/blue", code="conflict")
        platform.ok("DELETE", "/v1/nics/card?project=blue")
        platform.ok("DELETE", "/v1/projects/blue")


def survive_the_daemon(place):
    """Machines run on while the daemon is killed, and are found again; an address stays in use."""
    with Platform(place) as platform:
        machine = platform.launch("survivor")
        pid = platform.ok("GET", f"/v1/instances/{machine}")["pid"]
        platform.stop_daemon(signal.SIGKILL)
        os.kill(pid, 0)
        platform.start_daemon()
        shown = platform.ok("GET", f"/v1/instances/{machine}")
        expect(shown["state"] == "running" and shown["pid"] == pid, f"{shown}")
        platform.stop_daemon()
        os.kill(pid, 0)
        platform.start_daemon()
        expect(platform.state(machine) == "running", "it was not found again")


def describe_itself(place):
    """The description names every path, and answers agree with it."""
    with Platform(place) as platform:
        document = platform.ok("GET", "/v1/openapi.json", token="")
        expect(document["openapi"].startswith("3.0"), f"{document['openapi']}")
        operations = [operation["operationId"] for path in document["paths"].values()
                      for operation in path.values()]
        expect(len(operations) == len(set(operations)) > 30, f"{operations}")
        schema = document["components"]["schemas"]
        platform.ok("POST", "/v1/instances", {"name": "x", "image": "busybox", "desired": "stopped"})
        for plural, kind in (("instances", "instance"), ("types", "type"), ("images", "image"),
                             ("projects", "project"), ("operations", "operation"), ("events", "event"),
                             ("nics", "nic")):
            for item in platform.ok("GET", f"/v1/{plural}")["items"]:
                unknown = set(item) - set(schema[kind]["properties"]) - {"revision"}
                expect(not unknown, f"{kind}: {unknown} are not in the description")
                for name, value in item.items():
                    wanted = schema[kind]["properties"].get(name, {}).get("enum")
                    expect(wanted is None or value in wanted, f"{kind}.{name}: {value} is none of {wanted}")


def keep_a_record_of_calls(place):
    with Platform(place) as platform:
        platform.refused(404, "GET", "/v1/instances/none")
        platform.refused(401, "DELETE", "/v1/instances/none", token="cbl_a_b")
        log = os.path.join(platform.home, ".local/share/corbel/daemon/audit.log")
        lines = [json.loads(line) for line in open(log)]
        expect(any(line["operation"] == "instance.get" and line["status"] == 404 and
                   line["actor"].startswith("uid:") for line in lines), f"{lines}")
        expect(any(line["status"] == 401 and line["from"] == "127.0.0.1" for line in lines), f"{lines}")
        expect(oct(os.stat(log).st_mode)[-3:] == "600", "others can read it")


def hold_back_the_hasty(place):
    with Platform(place) as platform:
        token = platform.ok("POST", "/v1/tokens", {"name": "t", "role": "viewer"})["token"]
        other = platform.ok("POST", "/v1/tokens", {"name": "u", "role": "viewer"})["token"]
        statuses = set()
        for _ in range(3000):
            statuses.add(platform.call("GET", "/v1/version", token=token)[0])
            if 429 in statuses:
                break
        expect(statuses == {200, 429}, f"{statuses}")
        expect(platform.call("GET", "/v1/session", token=other)[0] == 200, "another token waits too")
        # Who is too hasty to sign in is let in all the same: what is refused does not count.
        platform.ok("POST", "/v1/users", {"name": "eve", "password": "correct horse", "role": "viewer"})
        attempts = []
        for wanted in (429, 201):
            while wanted not in attempts and len(attempts) < 20000:
                attempts.append(platform.call("POST", "/v1/session", {"name": "eve", "password": "correct horse"}, token="")[0])
            expect(attempts[-1] == wanted, f"{wanted} never came: {set(attempts)}")
            attempts.clear()


if __name__ == "__main__":
    if "--flood" in sys.argv[1:]:
        sys.argv[1:] = ["flood"]
    run_tests([
        ("drive an instance", drive_an_instance), ("serve the good in a flood", serve_the_good_in_a_flood),
        ("refuse what is malformed", refuse_what_is_malformed),
        ("finish each of many", finish_each_of_many), ("repeat a request", repeat_a_request),
        ("follow changes", follow_changes),
        ("reach the console", reach_the_console), ("keep an address", keep_an_address),
        ("survive the daemon", survive_the_daemon),
        ("describe itself", describe_itself), ("keep a record of calls", keep_a_record_of_calls),
        ("hold back the hasty", hold_back_the_hasty),
    ])
