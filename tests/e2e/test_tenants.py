#!/usr/bin/python3
"""Projects of one corbeld: what each is shown of the others and of the host."""

import json
import re
import socket

from harness import LIMIT_S, expect, run_tests
from platform_rig import Platform, cookie_of, give_disk, watch_changes

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


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


if __name__ == "__main__":
    run_tests([
        ("leak nothing across projects", leak_nothing_across),
        ("show tenants their own", show_tenants_their_own),
        ("keep a webhook", keep_a_webhook),
    ])
