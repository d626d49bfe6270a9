#!/usr/bin/python3
"""Roles of one's own: what their statements allow and deny, and nothing else."""

import signal

from harness import expect, run_tests
from platform_rig import Platform, Socket, cookie_of, rest_of, watch_changes


def hold_to_roles(place):
    """A role that was made allows what its statements say: by object and tag, as it is and as it would become, and in lists,
    streams and what a body names."""
    with Platform(place) as platform:
        for statements in ([], {}, [{"effect": "allow", "actions": ["instance.fly"], "resources": ["*"]}],
                           [{"effect": "allow", "actions": ["user.create"], "resources": ["*"]}],
                           [{"effect": "allow", "actions": ["*.get"], "resources": ["*"]}],
                           [{"effect": "maybe", "actions": ["*"], "resources": ["*"]}],
                           [{"effect": "allow", "actions": ["*"], "resources": ["i-*"]}],
                           [{"effect": "allow", "actions": ["*"]}], [{"effect": "allow", "actions": [], "resources": ["*"]}],
                           [{"effect": "allow", "actions": ["*"], "resources": ["*"], "conditions": {"name": "x"}}],
                           [{"effect": "allow", "actions": ["*"], "resources": ["*"], "condition": {"tag.env": "dev"}}]):
            platform.refused(400, "POST", "/v1/roles", {"name": "bad", "statements": statements})
        roles = {row["name"]: row for row in platform.ok("GET", "/v1/roles")["items"]}
        expect(set(roles) == {"viewer", "member", "admin"}, f"{roles}")
        looks = roles["viewer"]["statements"][0]["actions"]
        expect("instance.get" in looks and "instance.create" not in looks, f"{looks}")
        every = [{"effect": "allow", "actions": ["*"], "resources": ["*"]}]
        for name in roles:
            platform.refused(409, "POST", "/v1/roles", {"name": name, "statements": every}, code="conflict")
            platform.refused(409, "PATCH", f"/v1/roles/{name}", {"statements": every}, code="conflict")
            platform.refused(409, "DELETE", f"/v1/roles/{name}", code="conflict")

        made = {}
        for env in ("dev", "prod"):
            for kind, more in (("instance", {"image": "busybox", "desired": "stopped"}), ("volume", {"size_gib": 1})):
                answer = platform.ok("POST", f"/v1/{kind}s", {"name": f"{env}-{kind}", "tags": {"env": env}, **more})
                if "operation" in answer:
                    platform.finish(answer)
                made[env, kind] = answer[kind]["id"]
        kept = platform.ok("POST", "/v1/instances", {"name": "kept", "image": "busybox", "desired": "stopped",
                                                     "tags": {"env": "dev"}})
        platform.finish(kept)
        kept = kept["instance"]["id"]
        dev = [{"effect": "allow", "actions": ["type.*", "image.*", "watch", "token.*"], "resources": ["*"]},
               {"effect": "allow", "actions": ["*"], "resources": ["instance", "volume", "snapshot", "alarm", "operation"],
                "conditions": {"tag.env": "dev"}},
               {"effect": "deny", "actions": ["instance.delete", "instance.act.st*"], "resources": [kept]}]
        platform.ok("POST", "/v1/roles", {"name": "developer", "statements": dev})
        platform.refused(409, "POST", "/v1/roles", {"name": "developer", "statements": dev}, code="exists")
        platform.refused(400, "POST", "/v1/users", {"name": "eve", "password": "correct horse", "role": "none-such"},
                         field="role")
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "developer"})
        by_session = cookie_of(platform, "ann", "correct horse")
        tokens = [platform.ok("POST", "/v1/tokens", {"name": "t", "role": "developer"})["token"],
                  platform.ok("POST", "/v1/tokens", {"name": "own", "role": "admin"}, token="", headers=by_session)["token"]]
        for who in ({"token": "", "headers": by_session}, {"token": tokens[0]}, {"token": tokens[1]}):
            own = {row["name"] for row in platform.ok("GET", "/v1/instances", **who)["items"]}
            expect(own == {"dev-instance", "kept"}, f"{own} are seen")
            expect([row["name"] for row in platform.ok("GET", "/v1/volumes", **who)["items"]] == ["dev-volume"], "volumes")
            shown = platform.ok("GET", "/v1/session", **who)
            expect((shown["role"], shown["level"]) == ("developer", "member"), f"{shown}")
            for method, path, body in (("GET", "", None), ("PATCH", "", {"cmdline": "x"}), ("DELETE", "", None),
                                       ("POST", "/start", None), ("GET", "/log", None)):
                for name in (made["prod", "instance"], "prod-instance"):
                    status, _ = platform.call(method, f"/v1/instances/{name}{path}", body, **who)
                    expect(status == 404, f"{method} {name}{path}: {status}")
            # Neither into what it may not touch, nor out of what it may.
            for body in ({"tags": {"env": "prod"}}, {"tags": {}}, {"tags": None}, {"volumes": ["prod-volume"]}):
                platform.refused(403, "PATCH", "/v1/instances/dev-instance", body, **who)
            new = {"name": "new", "image": "busybox", "desired": "stopped"}
            for more in ({}, {"tags": {"env": "prod"}}, {"tags": {"env": "dev"}, "volumes": [made["prod", "volume"]]}):
                platform.refused(403, "POST", "/v1/instances?dry_run=true", {**new, **more}, **who)
            platform.ok("POST", "/v1/instances?dry_run=true", {**new, "tags": {"env": "dev"}, "volumes": ["dev-volume"]}, **who)
            tagged = {"name": "s", "tags": {"env": "dev"}}
            platform.refused(403, "POST", "/v1/snapshots", {**tagged, "volume": "prod-volume"}, **who)
            alarm = {**tagged, "metric": "cpu_percent", "threshold": 1, "action": "stop"}
            for more in ({"instance": "prod-instance"}, {"tag": "env=prod"}):
                platform.refused(403, "POST", "/v1/alarms", {**alarm, **more}, **who)
            platform.refused(403, "DELETE", f"/v1/instances/{kept}", **who)
            platform.refused(403, "POST", "/v1/instances/kept/start", **who)
            for path in ("/metrics", "/v1/host", "/v1/users", "/v1/roles", "/v1/nics", "/v1/events"):
                status, _ = platform.call("GET", path, **who)
                expect(status == 403, f"{path}: {status}")
            platform.refused(403, "POST", "/v1/roles", {"name": "more", "statements": every}, **who)
            platform.ok("PATCH", "/v1/instances/dev-instance", {"tags": {"env": "dev", "of": "ann"}}, **who)
            answer = platform.ok("POST", "/v1/instances/dev-instance/start", **who)
            status, operation = platform.call("GET", f"/v1/operations/{answer['operation']['id']}", **who)
            expect(status == 200, f"its own work: {status} {operation}")
            platform.finish(answer)
            platform.finish(platform.ok("POST", "/v1/instances/dev-instance/stop", {"force": True}, **who))
        expect(platform.ok("GET", "/v1/instances/prod-instance")["tags"] == {"env": "prod"}, "it has been changed")

        # A stream leaves out the same; another document holds for it and for all calls at once.
        console = Socket(platform.port, "/v1/instances/prod-instance/console", tokens[0])
        expect(console.status == 404, f"another's console: {console.status}")
        stream = watch_changes(platform, tokens[0])
        for env in ("prod", "dev"):
            platform.ok("PATCH", f"/v1/instances/{env}-instance", {"tags": {"env": env, "mark": f"of-{env}"}})
        text = b""
        while b"of-dev" not in text:
            piece = stream.recv(65536)
            expect(piece, f"the stream ended: {text[-300:]}")
            text += piece
        expect(b"of-prod" not in text and made["prod", "instance"].encode() not in text, "another's changes are told")
        platform.refused(409, "DELETE", "/v1/roles/developer", code="conflict")
        platform.ok("PATCH", "/v1/roles/developer", {"statements": [
            {"effect": "allow", "actions": ["instance.get", "instance.list"], "resources": [kept]}]})
        rest_of(stream)
        for token in tokens:
            own = [row["name"] for row in platform.ok("GET", "/v1/instances", token=token)["items"]]
            expect(own == ["kept"], f"{own} are seen")
            platform.refused(403, "PATCH", "/v1/instances/kept", {"cmdline": "x"}, token=token)
        for row in platform.ok("GET", "/v1/tokens")["items"]:
            platform.ok("DELETE", f"/v1/tokens/{row['id']}")
        platform.ok("PATCH", "/v1/users/ann", {"role": "viewer"})
        platform.ok("DELETE", "/v1/roles/developer")
        platform.refused(404, "GET", "/v1/roles/developer")


EVERY = [{"effect": "allow", "actions": ["*"], "resources": ["*"]}]


def make_user(platform, name, role, **more):
    """The headers of a browser where the new user has signed in."""
    platform.ok("POST", "/v1/users", {"name": name, "password": "correct horse", "role": role, **more})
    return cookie_of(platform, name, "correct horse")


def bound_what_a_role_is(place):
    """Their number and size have an end, what would never hold is refused, and a role that somebody has says who."""
    with Platform(place) as platform:
        def refuse(field, statement):
            platform.refused(400, "POST", "/v1/roles", {"name": "big", "statements": statement}, field=field)

        one = EVERY[0]
        told = platform.ok("GET", "/v1/openapi.json")["paths"]["/v1/roles"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        statements = told["properties"]["statements"]
        expect((told["required"], statements["maxItems"]) == (["statements", "name"], 50), f"{told}")
        expect({name: part.get("maxItems") for name, part in statements["items"]["properties"].items()} ==
               {"effect": None, "actions": 50, "resources": 50, "conditions": None}, f"{statements}")
        refuse("resources", [{**one, "effect": "deny", "resources": ["instances"]}])
        refuse("actions", [{**one, "actions": ["*"] * 51}])
        refuse("statements", EVERY * 51)
        refuse("conditions", [{**one, "conditions": {f"tag.{number}": "x" for number in range(21)}}])
        refuse("statements", [{**one, "resources": [f"i-{number:0100}" for number in range(50)]}] * 4)
        made = 0
        while (answer := platform.call("POST", "/v1/roles", {"name": f"r{made}", "statements": EVERY}))[0] == 201:
            made += 1
            expect(made <= 1000, "there is no end to roles")
        expect(answer[0] == 403 and answer[1]["error"]["code"] == "quota" and "200" in answer[1]["error"]["message"], f"{answer}")
        listed = {row["name"] for row in platform.ok("GET", "/v1/roles")["items"]}
        expect(made == 200 and len(listed) == 203, f"{made} made, {len(listed)} listed")

        make_user(platform, "ann", "r1")
        error = platform.refused(409, "DELETE", "/v1/roles/r1", code="conflict")
        expect("user ann" in error["message"], f"{error}")
        token = platform.ok("POST", "/v1/tokens", {"name": "of-mine", "role": "r2"})
        error = platform.refused(409, "DELETE", "/v1/roles/r2", code="conflict")
        expect(token["id"] in error["message"] and "of-mine" in error["message"], f"{error}")
        platform.ok("DELETE", f"/v1/tokens/{token['id']}")
        platform.ok("DELETE", "/v1/roles/r2")

        # Another daemon, killed before, knows the same.
        kept = platform.ok("GET", "/v1/roles/r1")
        platform.stop_daemon(signal.SIGKILL)
        platform.start_daemon()
        expect(platform.ok("GET", "/v1/roles/r1") == kept, "another daemon has another role")
        expect(len(platform.ok("GET", "/v1/roles")["items"]) == 202, "roles are gone")


def raise_nobody(place):
    """Who administers one project gets no more by roles, users or tokens; what a token made ends with its user."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/projects", {"name": "blue"})
        platform.ok("POST", "/v1/projects", {"name": "red"})
        platform.ok("POST", "/v1/volumes?project=red", {"name": "of-red", "size_gib": 1})
        platform.ok("POST", "/v1/volumes?project=blue", {"name": "of-blue", "size_gib": 1})
        platform.ok("POST", "/v1/roles", {"name": "all", "statements": EVERY})
        platform.ok("POST", "/v1/roles", {"name": "looks", "statements": [
            {"effect": "allow", "actions": ["volume.get", "volume.list", "token.*"], "resources": ["*"]}]})
        tenant = {"token": "", "headers": make_user(platform, "tenant", "admin", project="blue")}
        looks = {"token": "", "headers": make_user(platform, "looks", "looks", project="blue")}
        for who in (tenant, looks):
            for method, path, body in (("GET", "/v1/roles", None), ("GET", "/v1/roles/all", None),
                                       ("POST", "/v1/roles", {"name": "x", "statements": EVERY}),
                                       ("PATCH", "/v1/roles/looks", {"statements": EVERY}), ("DELETE", "/v1/roles/all", None),
                                       ("POST", "/v1/users", {"name": "x", "password": "correct horse", "role": "admin"}),
                                       ("PATCH", "/v1/users/looks", {"role": "admin"}), ("GET", "/v1/users", None)):
                platform.refused(403, method, path, body, **who)
            for role in ("admin", "all", "looks", "viewer"):
                body = {"name": "more", "role": role, "project": "red"}
                token = platform.ok("POST", "/v1/tokens", body, **who)["token"]
                shown = [row["name"] for row in platform.ok("GET", "/v1/volumes", token=token)["items"]]
                expect(shown == ["of-blue"], f"by {role}: {shown}")
                platform.refused(404, "GET", "/v1/volumes?project=red", token=token)
                platform.refused(403, "GET", "/v1/users", token=token)
                if who is looks:
                    platform.refused(403, "DELETE", "/v1/volumes/of-blue", token=token)
                    platform.refused(403, "GET", "/v1/projects", token=token)

        # A second factor is one's own, whatever the role says.
        platform.ok("POST", "/v1/session/totp", {"password": "correct horse"}, **looks)

        # A token of an administrator's token is that administrator's.
        head = {"token": "", "headers": make_user(platform, "head", "admin")}
        first = platform.ok("POST", "/v1/tokens", {"name": "first"}, **head)["token"]
        second = platform.ok("POST", "/v1/tokens", {"name": "second", "role": "admin"}, token=first)["token"]
        expect(platform.ok("GET", "/v1/session", token=second)["level"] == "admin", "less than its user")
        platform.ok("PATCH", "/v1/users/tenant", {"project": "red"})
        platform.ok("POST", "/v1/users", {"name": "spare", "password": "correct horse", "role": "admin"})
        platform.ok("PATCH", "/v1/users/head", {"role": "viewer"})
        for token in (first, second):
            platform.refused(403, "GET", "/v1/users", token=token)
        platform.ok("DELETE", "/v1/users/head")
        for token in (first, second):
            platform.refused(401, "GET", "/v1/volumes", token=token)


def tell_nothing_of_what_is_gone(place):
    """A denial by tag holds for what is told of an object after its end, by the list, a hook and the report too."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/roles", {"name": "most", "statements": EVERY + [
            {"effect": "deny", "actions": ["*"], "resources": ["*"], "conditions": {"tag.env": "prod"}}]})
        platform.ok("POST", "/v1/roles", {"name": "quiet", "statements": EVERY + [
            {"effect": "deny", "actions": ["event.*", "operation.*"], "resources": ["*"], "conditions": {"tag.env": "prod"}}]})
        platform.ok("POST", "/v1/roles", {"name": "all", "statements": EVERY})
        quiet = platform.ok("POST", "/v1/tokens", {"name": "quiet", "role": "quiet"})["token"]
        most = platform.ok("POST", "/v1/tokens", {"name": "most", "role": "most"})["token"]
        every = platform.ok("POST", "/v1/tokens", {"name": "all", "role": "all"})["token"]
        for name, env in (("kept", "dev"), ("gone", "prod")):
            answer = platform.ok("POST", "/v1/instances", {"name": name, "image": "busybox", "desired": "stopped",
                                                           "tags": {"env": env}})
            platform.finish(answer)
        gone = answer["instance"]["id"]
        for token in (most, quiet):
            told = [event["text"] for event in platform.ok("GET", "/v1/events", token=token)["items"]]
            expect(told and not any("gone" in text for text in told), f"{told}")
        platform.finish(platform.ok("DELETE", "/v1/instances/gone"))
        for path, token in ((path, token) for path in ("events", "operations") for token in (most, quiet)):
            items = platform.ok("GET", f"/v1/{path}", token=token)["items"]
            expect(items and not any(item["target"] == gone for item in items), f"{items}")
        told = [event["text"] for event in platform.ok("GET", "/v1/events", token=every)["items"]]
        expect(any("gone" in text for text in told), f"{told}")
        hook = {"name": "h", "webhook": "http://127.0.0.1:9/x"}
        platform.refused(403, "POST", "/v1/hooks", hook, token=most)
        platform.refused(403, "GET", "/v1/usage", token=most)
        platform.ok("POST", "/v1/hooks", hook, token=every)
        platform.ok("GET", "/v1/usage", token=every)
        platform.ok("DELETE", "/v1/hooks/h")


if __name__ == "__main__":
    run_tests([
        ("hold to roles", hold_to_roles),
        ("bound what a role is", bound_what_a_role_is),
        ("raise nobody", raise_nobody),
        ("tell nothing of what is gone", tell_nothing_of_what_is_gone),
    ])
