#!/usr/bin/python3
"""The REST interface of corbeld as scripts use it, and as those do who mean harm: real machines, the
unix socket, tokens by TCP, event streams and consoles."""

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
import threading

from harness import LIMIT_S, Failure, expect, run_tests
from platform_rig import Platform, Socket, give_disk

FLOOD = 10000 if "--flood" in sys.argv[1:] else 600
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43

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


def know_who_calls(place):
    """Users, tokens and projects: what is whose, and nothing seen across."""
    with Platform(place) as platform:
        platform.refused(401, "GET", "/v1/instances", token="")
        admin = platform.ok("POST", "/v1/tokens", {"name": "root", "role": "admin"})["token"]
        platform.ok("POST", "/v1/projects", {"name": "blue"})
        platform.ok("POST", "/v1/projects", {"name": "red"})
        tokens = {}
        for project in ("blue", "red"):
            for role in ("viewer", "member"):
                tokens[project, role] = platform.ok(
                    "POST", "/v1/tokens", {"name": f"{project}-{role}", "role": role,
                                           "project": project}, token=admin)["token"]
        blue, red = tokens["blue", "member"], tokens["red", "member"]
        made = platform.ok("POST", "/v1/instances", {"name": "web", "image": "busybox",
                                                     "desired": "stopped"}, token=blue)
        machine = made["instance"]["id"]
        expect(len(platform.ok("GET", "/v1/instances", token=blue)["items"]) == 1, "its own")
        expect(platform.ok("GET", "/v1/instances", token=red)["items"] == [], "another's instance is listed")
        for token, status in ((red, 404), (tokens["red", "viewer"], 404)):
            platform.refused(status, "GET", f"/v1/instances/{machine}", token=token)
            platform.refused(404, "GET", "/v1/instances?project=blue", token=token)
        for method, path, body in (("DELETE", f"/v1/instances/{machine}", None),
                                   ("PATCH", f"/v1/instances/{machine}", {"tags": {}}),
                                   ("POST", f"/v1/instances/{machine}/start", None)):
            platform.refused(404, method, path, body, token=red)
            platform.refused(403, method, path, body, token=tokens["blue", "viewer"])
        operation = made["operation"]["id"]
        platform.refused(404, "GET", f"/v1/operations/{operation}", token=red)
        platform.refused(403, "GET", "/v1/users", token=blue, code="forbidden")
        platform.refused(403, "POST", "/v1/types", {"name": "x", "cpus": 1, "memory_mib": 64}, token=blue)
        expect(all("hash" not in row for row in platform.ok("GET", "/v1/tokens", token=admin)["items"]),
               "a hash is shown")
        # A token that is revoked, one that expires, and ones that never were.
        row = next(row for row in platform.ok("GET", "/v1/tokens")["items"] if row["name"] == "blue-member")
        platform.ok("DELETE", f"/v1/tokens/{row['id']}")
        platform.refused(401, "GET", "/v1/instances", token=blue)
        brief = platform.ok("POST", "/v1/tokens", {"name": "brief", "role": "viewer", "expires_s": 1})["token"]
        while (status := platform.call("GET", "/v1/session", token=brief)[0]) != 401:
            expect(status in (200, 429), f"a token that expires: {status}")
        for wrong in ("x", red[:-1], red + "a", "cbl_" + "a" * 500, "cbl_../../x_y", "cbl__"):
            platform.refused(401, "GET", "/v1/instances", token=wrong)
        platform.refused(401, "GET", "/v1/instances", token="", headers={"Authorization": "Basic eDp5"})


def own_objects(platform, project):
    """One object of each kind, and what names them: {plural: id}; names have the project's."""
    where, made = f"?project={project}", {}
    for plural, body in (("volumes", {"name": f"{project}-data", "size_gib": 1}),
                         ("instances", {"name": f"{project}-vm", "image": "busybox", "desired": "stopped",
                                        "tags": {"secret": f"{project}-tag"}}),
                         ("nics", {"name": f"{project}-card"}),
                         ("alarms", {"name": f"{project}-alarm", "metric": "cpu_percent", "threshold": 1, "tag": f"of={project}-"}),
                         ("keys", {"name": f"{project}-key", "public_key": KEY}),
                         ("snapshots", {"name": f"{project}-snap", "volume": f"{project}-data"})):
        answer = platform.ok("POST", f"/v1/{plural}{where}", body)
        if "operation" in answer:
            platform.finish(answer)
        made[plural] = answer[plural[:-1]]["id"]
    for plural in ("operations", "events"):
        made[plural] = platform.ok("GET", f"/v1/{plural}{where}")["items"][0]["id"]
    return made


def invent(schema, foreign):
    """A body that would do where it is allowed, with another's objects wherever one is named."""
    body = {}
    for name, field in schema.get("properties", {}).items():
        if name in foreign:
            body[name] = foreign[name]
        elif name in schema.get("required", []):
            body[name] = {"integer": field.get("minimum", 1), "boolean": True, "array": [], "object": {}}.get(
                field.get("type"), field.get("enum", ["x" * max(20, field.get("minLength", 1))])[0])
    return body


def leak_nothing_across(place):
    """Each operation of the description, by callers of another project, with every object's id and name."""
    with Platform(place) as platform:
        give_disk(platform)
        for project in ("blue", "red"):
            platform.ok("POST", "/v1/projects", {"name": project})
        theirs, own = own_objects(platform, "red"), own_objects(platform, "blue")
        other = platform.ok("POST", "/v1/tokens", {"name": "red-token", "role": "member", "project": "red"})
        theirs["tokens"], theirs["projects"] = other["id"], "red"
        platform.ok("POST", "/v1/users", {"name": "red-user", "password": "correct horse", "project": "red"})
        theirs["users"] = "red-user"
        secrets = [*theirs.values(), "red-"]
        secrets.remove("red")
        foreign = {"image": "busybox", "snapshot": theirs["snapshots"], "volumes": [theirs["volumes"]], "volume": theirs["volumes"],
                   "instance": theirs["instances"], "nic": theirs["nics"], "project": "red", "key": theirs["keys"], "keys": [theirs["keys"]]}
        before = {plural: platform.ok("GET", f"/v1/{plural}?project=red")["items"] for plural in
                  ("instances", "volumes", "snapshots", "keys", "nics", "alarms")}
        document = platform.ok("GET", "/v1/openapi.json", token="")
        tried = 0
        for role in ("member", "admin"):
            token = platform.ok("POST", "/v1/tokens", {"name": f"blue-{role}", "role": role, "project": "blue"})["token"]
            for path, methods in document["paths"].items():
                plural = (path.split("/") + [""])[2]
                for method, operation in methods.items():
                    if operation["operationId"] in ("watch", "session.create") or "websocket" in operation["operationId"]:
                        continue
                    actions = next((p["schema"]["enum"] for p in operation["parameters"] if p["name"] == "action"), [""])
                    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
                    for number in ([theirs.get(plural, theirs["instances"]), theirs["instances"]] if "{id}" in path else [""]):
                        for action in actions:
                            for query in ("", "?project=red"):
                                tried += 1
                                where = path.replace("{id}", number).replace("{action}", action) + query
                                body = None if schema is None else invent(schema, foreign)
                                status, answer = platform.call(method.upper(), where, body, token=token)
                                while status == 429:  # its own limit
                                    status, answer = platform.call(method.upper(), where, body, token=token)
                                text = answer.decode(errors="replace") if isinstance(answer, bytes) else json.dumps(answer)
                                for asked in (where, json.dumps(body)):
                                    for word in secrets:  # what it said itself it may hear again
                                        text = text.replace(word, "") if word in asked and status >= 400 else text
                                expect(status < 500 and not any(word in text for word in secrets),
                                       f"{role} {method} {where} {body}: {status} {text}")
                                expect(status >= 400 or "{id}" not in path or plural in ("types", "images"),
                                       f"{role} {method} {where} {body}: {status} {text}")
        expect(tried > 150, f"{tried} calls")
        after = {plural: platform.ok("GET", f"/v1/{plural}?project=red")["items"] for plural in before}
        expect(before == after, f"{before}\n{after}")
        expect(platform.call("GET", "/v1/session", token=other["token"])[0] == 200, "red's token is gone")
        expect(platform.ok("GET", "/v1/projects/red")["name"] == "red" and own, "red is gone")

        # Nor does a stream of changes tell.
        blue = platform.ok("POST", "/v1/tokens", {"name": "b", "role": "viewer", "project": "blue"})["token"]
        with socket.create_connection(("127.0.0.1", platform.port), timeout=LIMIT_S) as peer:
            peer.sendall(f"GET /v1/watch?since=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {blue}\r\n\r\n".encode())
            text = b""
            while own["snapshots"].encode() not in text:
                text += peer.recv(65536)
            platform.ok("PATCH", f"/v1/instances/{theirs['instances']}?project=red", {"tags": {"a": "red-two"}})
            platform.ok("PATCH", f"/v1/instances/{own['instances']}?project=blue", {"tags": {"a": "blue-two"}})
            while b"blue-two" not in text:
                text += peer.recv(65536)
        expect(not any(word.encode() in text for word in secrets), "changes of another project are told")


def show_tenants_their_own(place):
    """Who is bound to a project sees what the host is, what that project uses, and no sums over others."""
    with Platform(place) as platform:
        for project in ("blue", "red"):
            platform.ok("POST", "/v1/projects", {"name": project})
        tokens = {role: platform.ok("POST", "/v1/tokens", {"name": role, "role": role, "project": "blue"})["token"]
                  for role in ("viewer", "member", "admin")}
        body = {"image": "busybox", "engine": "soft", "memory_mib": 128}
        for project, name, cpus, desired in (("red", "others", 2, "running"), ("blue", "own", 1, "running"), ("blue", "off", 1, "stopped")):
            platform.finish(platform.ok("POST", f"/v1/instances?project={project}", {**body, "name": name, "cpus": cpus, "desired": desired}))
        whole = platform.ok("GET", "/v1/host")
        expect((whole["cpus"]["used"], whole["memory_mib"]["used"], whole["instances"]) == (3, 256, {"total": 3, "running": 2}), f"{whole}")
        expect(platform.ok("GET", "/v1/host/history")["series"], "administrators have no history")
        own = {**whole, "cpus": {**whole["cpus"], "used": 1}, "memory_mib": {**whole["memory_mib"], "used": 128},
               "instances": {"total": 2, "running": 1}}
        for role, token in tokens.items():
            expect(platform.ok("GET", "/v1/host", token=token) == own, f"{role}: {platform.ok('GET', '/v1/host', token=token)}")
            platform.refused(403, "GET", "/v1/host/history", token=token, code="forbidden")
        large = {**body, "name": "large", "memory_mib": whole["memory_mib"]["total"] - 200}  # fits, were it alone here
        error = platform.refused(503, "POST", "/v1/instances?project=blue", large, code="capacity", field="memory_mib")
        expect("of which 256 are given away" in error["message"], f"{error}")
        for method, path, more in (("POST", "/v1/instances", large), ("POST", "/v1/instances?dry_run=true", large)):
            error = platform.refused(503, method, path, more, token=tokens["member"], code="capacity", field="memory_mib")
            expect("no room" in error["message"] and not re.search(r"\d", error["message"]), f"{error}")


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


def sign_in(place):
    """Sessions by name and password, with a cookie that no other page can use."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "member"})
        platform.refused(409, "POST", "/v1/users", {"name": "ann", "password": "another one"}, code="exists")
        platform.refused(400, "POST", "/v1/users", {"name": "bob", "password": "short"}, field="password")
        expect("password" not in json.dumps(platform.ok("GET", "/v1/users")), "a password is shown")
        for name, password in (("ann", "wrong horse"), ("nobody", "correct horse"), ("../ann", "x")):
            platform.refused(401, "POST", "/v1/session", {"name": name, "password": password}, token="")
        client = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=LIMIT_S)
        client.request("POST", "/v1/session", json.dumps({"name": "ann", "password": "correct horse"}),
                       {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        cookie = answer.getheader("set-cookie")
        expect(answer.status == 201 and "HttpOnly" in cookie and "SameSite=Strict" in cookie, f"{cookie}")
        cookie = {"Cookie": cookie.split(";")[0]}
        expect(platform.ok("GET", "/v1/session", token="", headers=cookie)["actor"] == "user:ann", "who")
        wanted = {"name": "forged", "image": "busybox", "desired": "stopped"}
        platform.refused(403, "POST", "/v1/instances", wanted, token="",
                         headers={**cookie, "Origin": "http://evil.example"})
        platform.refused(403, "POST", "/v1/instances", wanted, token="", headers=cookie)
        platform.ok("POST", "/v1/instances?dry_run=true", wanted, token="", headers={**cookie, "X-CSRF-Token": "1"})
        forged = Socket(platform.port, "/v1/instances/any/console",
                        headers=f"Cookie: {cookie['Cookie']}\r\nOrigin: http://evil.example\r\n")
        expect(forged.status == 403, f"a socket from another page: {forged.status}")
        platform.ok("DELETE", "/v1/session", token="", headers={**cookie, "X-CSRF-Token": "1"})
        platform.refused(401, "GET", "/v1/instances", token="", headers=cookie)
        platform.ok("DELETE", "/v1/users/ann")
        platform.refused(401, "POST", "/v1/session", {"name": "ann", "password": "correct horse"}, token="")


def cookie_of(platform, name, password):
    """The headers of a browser where the user has signed in."""
    client = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=LIMIT_S)
    with contextlib.closing(client):
        client.request("POST", "/v1/session", json.dumps({"name": name, "password": password}), {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        return {"Cookie": answer.getheader("set-cookie").split(";")[0], "X-CSRF-Token": "1",
                "Origin": f"http://127.0.0.1:{platform.port}"}


def watch_changes(platform, token=None, headers=None):
    """An event stream that has begun."""
    peer = socket.create_connection(("127.0.0.1", platform.port), timeout=LIMIT_S)
    headers = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    peer.sendall(f"GET /v1/watch?since=1 HTTP/1.1\r\nHost: 127.0.0.1:{platform.port}\r\n{lines}\r\n".encode())
    text = b""
    while b":\n\n" not in text:
        piece = peer.recv(65536)
        text += piece
        expect(piece and text.startswith(b"HTTP/1.1 200"[:len(text)]), f"{text}")
    return peer


def rest_of(peer):
    """What still comes until the server closes."""
    text = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := peer.recv(65536):
            text += piece
    peer.close()
    return text


def end_what_is_revoked(place):
    """Streams and consoles end with the right to them: a token revoked or expired, a user who signs out, is deleted or
    is bound to another project; and what was one user's is not the next one's of that name."""
    with Platform(place) as platform:
        machine = platform.launch("m")
        console = f"/v1/instances/{machine}/console"
        platform.ok("POST", "/v1/projects", {"name": "blue"})

        def change(text):
            platform.ok("PATCH", f"/v1/instances/{machine}", {"tags": {"word": text}})

        def user(role="member", name="ann"):
            platform.ok("POST", "/v1/users", {"name": name, "password": "correct horse", "role": role})
            return cookie_of(platform, name, "correct horse")

        def socket_of(headers):
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            opened = Socket(platform.port, console, headers=lines)
            expect(opened.status == 101, f"no console: {opened.status}")
            return opened.peer

        token = platform.ok("POST", "/v1/tokens", {"name": "t", "role": "member"})
        stays = watch_changes(platform, platform.ok("POST", "/v1/tokens", {"name": "s", "role": "viewer"})["token"])
        opened = [watch_changes(platform, token["token"]), Socket(platform.port, console, token=token["token"]).peer]
        platform.ok("DELETE", f"/v1/tokens/{token['id']}")
        change("after-the-token")
        expect(not any(b"after-the-token" in rest_of(peer) for peer in opened), "a revoked token is told of changes")

        brief = None
        for seconds in (2, 10, 60, 600):  # long enough to begin, on whatever host this is
            token = platform.ok("POST", "/v1/tokens", {"name": "short", "role": "viewer", "expires_s": seconds})["token"]
            with contextlib.suppress(Failure):
                brief = watch_changes(platform, token)
                break
        while platform.call("GET", "/v1/session", token=token)[0] != 401:
            pass
        ended = threading.Thread(target=rest_of, args=(brief,))
        ended.start()
        number = 0
        while ended.is_alive():  # what comes within the second that it may take is old by then
            change(f"until-it-ends-{(number := number + 1)}")
            expect(number < 10000, "an expired token is told of changes")
        ended.join()

        cookie = user()
        opened = [watch_changes(platform, headers=cookie), socket_of(cookie)]
        platform.ok("DELETE", "/v1/session", token="", headers=cookie)
        change("after-the-session")
        expect(not any(b"after-the-session" in rest_of(peer) for peer in opened), "one who has signed out is told of changes")

        # A viewer has no console, but still the stream; one who is bound elsewhere gets another.
        cookie = cookie_of(platform, "ann", "correct horse")
        stream, shell = watch_changes(platform, headers=cookie), socket_of(cookie)
        platform.ok("PATCH", "/v1/users/ann", {"role": "viewer"})
        rest_of(shell)
        change("still-a-viewer")
        text = b""
        while b"still-a-viewer" not in text:
            piece = stream.recv(65536)
            expect(piece, "a viewer's stream ended")
            text += piece
        platform.ok("PATCH", "/v1/users/ann", {"project": "blue"})
        change("of-another-project")
        expect(b"of-another-project" not in rest_of(stream), "changes of another project are told")

        # Another password ends the sessions, and a deleted user everything, for good.
        own = platform.ok("POST", "/v1/tokens", {"name": "own"}, token="", headers=cookie)["token"]
        platform.ok("PATCH", "/v1/users/ann", {"password": "battery staple"})
        platform.refused(401, "GET", "/v1/session", token="", headers=cookie)
        platform.ok("GET", "/v1/session", token=own)
        cookie = cookie_of(platform, "ann", "battery staple")
        platform.ok("GET", "/v1/session", token="", headers=cookie)
        stream = watch_changes(platform, headers=cookie)
        platform.ok("DELETE", "/v1/users/ann")
        rest_of(stream)
        user("admin")
        platform.refused(401, "GET", "/v1/session", token="", headers=cookie)
        platform.refused(401, "GET", "/v1/session", token=own)
        shown = json.dumps([platform.ok("GET", "/v1/users"), platform.ok("GET", "/v1/tokens")])
        expect("stamp" not in shown and "hash" not in shown, f"secrets are shown: {shown}")
        change("to-the-last")
        text = b""
        while b"to-the-last" not in text:
            text += stays.recv(65536)
        stays.close()


def keep_an_administrator(place):
    """The last user who can administer the host stays one, whoever asks, also when two put out each other at once."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/projects", {"name": "blue"})
        wanted = {"password": "correct horse", "role": "admin"}
        platform.ok("POST", "/v1/users", {"name": "ann", **wanted})
        platform.ok("POST", "/v1/users", {"name": "bound", **wanted, "project": "blue"})  # administers nothing
        own = cookie_of(platform, "ann", "correct horse")
        for who in ({}, {"token": "", "headers": own}):
            for method, body, field in (("DELETE", None, "name"), ("PATCH", {"role": "member"}, "role"),
                                        ("PATCH", {"project": "blue"}, "project")):
                error = platform.refused(409, method, "/v1/users/ann", body, code="conflict", field=field, **who)
                expect("role admin" in error["message"] and "'ann'" in error["message"], f"{error}")
        expect(platform.ok("GET", "/v1/session", token="", headers=own)["role"] == "admin", "ann is none any more")
        platform.ok("PATCH", "/v1/users/ann", {"password": "battery staple"})
        for number in range(6):  # each puts out the other: one of them stays
            platform.ok("POST", "/v1/users", {"name": "bea", **wanted})
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                change = {"role": "viewer"} if number % 2 else None
                answers = list(pool.map(lambda name: platform.call("PATCH" if change else "DELETE", f"/v1/users/{name}", change),
                                        ("ann", "bea")))
            expect(sorted(status for status, _ in answers) == [200, 409], f"{answers}")
            left = [row["name"] for row in platform.ok("GET", "/v1/users")["items"]
                    if row["role"] == "admin" and not row.get("project")]
            expect(len(left) == 1, f"{left}")
            platform.call("DELETE", f"/v1/users/{'bea' if left == ['ann'] else 'ann'}")  # unless it is gone
            if left == ["bea"]:
                platform.ok("POST", "/v1/users", {"name": "ann", **wanted})
                platform.ok("DELETE", "/v1/users/bea")


def keep_a_webhook(place):
    """An alarm's address may hold a secret: who may only look gets its scheme and host."""
    path = "/v1/alarms?project=blue"
    addresses = {"https://ann:secret@hooks.example.org:8443/secret?token=secret#secret": "https://hooks.example.org:8443/…",
                 "http://[2001:db8::1]?secret": "http://[2001:db8::1]/…", "https://example.org": "https://example.org/…",
                 "http://a@secret@example.org\\secret": "http://example.org/…", "https://se cret/": None, "http:///secret": None}
    with Platform(place) as platform:
        platform.ok("POST", "/v1/projects", {"name": "blue"})
        tokens = {role: platform.ok("POST", "/v1/tokens", {"name": role, "role": role, "project": "blue"})["token"]
                  for role in ("viewer", "member")}
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "member"})
        streams = [watch_changes(platform, tokens["viewer"]), watch_changes(platform, headers=cookie_of(platform, "ann", "correct horse"))]
        platform.ok("PATCH", "/v1/users/ann", {"role": "viewer"})  # while the stream goes on
        made = {platform.ok("POST", path, {"metric": "cpu_percent", "threshold": 1, "tag": "a=b", "webhook": whole})["alarm"]["id"]: whole
                for whole in addresses}
        for role in tokens:
            listed = {row["id"]: row for row in platform.ok("GET", "/v1/alarms", token=tokens[role])["items"]}
            expect(len(listed) == len(made), f"{listed}")
            for alarm, whole in made.items():
                wanted = whole if role == "member" else addresses[whole]
                for row in (listed[alarm], platform.ok("GET", f"/v1/alarms/{alarm}", token=tokens[role])):
                    expect(row.get("webhook") == wanted and ("secret" in json.dumps(row)) == ("secret" in (wanted or "")), f"{role}: {row}")
        query = "/v1/alarms?webhook=https://example.org"
        expect(len(platform.ok("GET", query, token=tokens["member"])["items"]) == 1, "it is not found")
        platform.refused(400, "GET", query, token=tokens["viewer"], code="unknown-field", field="webhook")
        platform.ok("POST", "/v1/keys?project=blue", {"name": "last"})
        for stream in streams:
            text = b""
            while b'"last"' not in text:
                piece = stream.recv(65536)
                expect(piece, f"the stream ended: {text}")
                text += piece
            stream.close()
            expect(b"hooks.example.org:8443/" in text and b"secret" not in text, f"{text}")


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


def keep_to_quotas(place):
    """A project's cards, alarms and key pairs stay within its limits, also when all ask at once; what is let go can be had again."""
    with Platform(place) as platform:
        platform.ok("PATCH", "/v1/projects/default", {"max_nics": 5, "max_alarms": 3, "max_keys": 2})
        alarm = {"metric": "cpu_percent", "threshold": 90, "tag": "tier=web"}
        machine = {"image": "busybox", "memory_mib": 128, "desired": "stopped"}
        wanted = [("nics", {}), ("instances", machine), ("alarms", alarm)] * 8
        wanted += [("keys", {"name": f"key-{number}", "public_key": KEY}) for number in range(6)]
        with concurrent.futures.ThreadPoolExecutor(len(wanted)) as pool:
            answers = list(pool.map(lambda one: platform.call("POST", f"/v1/{one[0]}", one[1]), wanted))
        for status, answer in answers:
            expect(status in (201, 202) or (status, answer["error"]["code"]) == (403, "quota"), f"{status} {answer}")
        made = {path: sum(status < 300 for (status, _), (of, _) in zip(answers, wanted) if of == path)
                for path in ("nics", "instances", "alarms", "keys")}
        expect(made["nics"] + made["instances"] == 5 and (made["alarms"], made["keys"]) == (3, 2), f"{made}")
        cards, alarms = (platform.ok("GET", f"/v1/{path}")["items"] for path in ("nics", "alarms"))
        expect((len(cards), len(alarms)) == (5, 3), f"{cards} {alarms}")
        expect(len(platform.ok("GET", "/v1/instances")["items"]) == made["instances"], "one without a card")

        # What is refused says of what there are too many; what there is can be changed, and others have their own.
        error = platform.refused(403, "POST", "/v1/nics", {}, code="quota")
        expect("5 network cards" in error["message"], f"{error}")
        platform.refused(403, "POST", "/v1/nics?dry_run=true", {}, code="quota")
        expect("3 alarms" in platform.refused(403, "POST", "/v1/alarms", alarm, code="quota")["message"], "of what?")
        for body in ({"name": "more", "public_key": KEY}, {"name": "more"}):
            error = platform.refused(403, "POST", "/v1/keys", body, code="quota")
            expect("2 key pairs" in error["message"] and "private_key" not in error, f"{error}")
        expect(len(keys := platform.ok("GET", "/v1/keys")["items"]) == 2, f"{keys}")
        platform.ok("DELETE", f"/v1/keys/{keys[0]['id']}")
        platform.ok("POST", "/v1/keys", {"name": "more"})
        platform.ok("PATCH", f"/v1/alarms/{alarms[0]['id']}", {"threshold": 95})
        platform.ok("PATCH", "/v1/projects/default", {"max_nics": 2})  # fewer than there are
        platform.ok("PATCH", f"/v1/nics/{cards[0]['id']}", {"tags": {"kept": "yes"}})
        platform.ok("POST", "/v1/projects", {"name": "blue", "max_nics": 1})
        platform.ok("POST", "/v1/nics?project=blue", {"name": "card"})
        platform.refused(403, "POST", "/v1/nics?project=blue", {}, code="quota")

        # An instance that takes a card brings none; one that lets it go needs another.
        platform.finish(platform.ok("POST", "/v1/instances?project=blue", {**machine, "name": "taker", "nic": "card"}))
        platform.refused(403, "PATCH", "/v1/instances/taker?project=blue", {"nic": None}, code="quota")
        expect(platform.ok("GET", "/v1/nics/card?project=blue")["state"] == "in-use", "it was let go")
        platform.ok("PATCH", "/v1/projects/blue", {"max_nics": 0})
        platform.ok("PATCH", "/v1/instances/taker?project=blue", {"nic": None})
        platform.finish(platform.ok("DELETE", "/v1/instances/taker?project=blue"))

        platform.ok("DELETE", f"/v1/alarms/{alarms[0]['id']}")
        platform.ok("POST", "/v1/alarms", alarm)
        platform.settle()


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


if __name__ == "__main__":
    if "--flood" in sys.argv[1:]:
        sys.argv[1:] = ["flood"]
    run_tests([
        ("drive an instance", drive_an_instance), ("know who calls", know_who_calls),
        ("leak nothing across projects", leak_nothing_across),
        ("show tenants their own", show_tenants_their_own),
        ("serve the good in a flood", serve_the_good_in_a_flood), ("sign in", sign_in),
        ("end what is revoked", end_what_is_revoked), ("keep an administrator", keep_an_administrator),
        ("keep a webhook", keep_a_webhook),
        ("refuse what is malformed", refuse_what_is_malformed),
        ("finish each of many", finish_each_of_many), ("repeat a request", repeat_a_request),
        ("follow changes", follow_changes),
        ("reach the console", reach_the_console), ("keep an address", keep_an_address),
        ("keep to quotas", keep_to_quotas),
        ("survive the daemon", survive_the_daemon),
        ("describe itself", describe_itself), ("keep a record of calls", keep_a_record_of_calls),
        ("hold back the hasty", hold_back_the_hasty),
    ])
