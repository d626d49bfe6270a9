#!/usr/bin/python3
"""Who calls corbeld: users, tokens and sessions, and the last who can administer the host."""

import base64
import concurrent.futures
import contextlib
import hashlib
import hmac
import http.client
import json
import pathlib
import signal
import struct
import time

from harness import LIMIT_S, expect, run_tests
from platform_rig import Platform, Socket, cookie_of


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


def code_of(secret, seconds):
    """RFC 6238."""
    digest = hmac.new(base64.b32decode(secret), struct.pack(">Q", int(seconds) // 30), hashlib.sha1).digest()
    at = digest[-1] & 15
    return f"{(int.from_bytes(digest[at:at + 4], 'big') & 0x7fffffff) % 10 ** 6:06}"


def ask_for_a_second_factor(place):
    expect(code_of("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", 59) == "287082", "the RFC's own example")
    with Platform(place) as platform:
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "member"})
        right = {"name": "ann", "password": "correct horse"}

        def session_of(path, body, **headers):
            """Those of the session that an answer begins, and the answer."""
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", platform.port, timeout=LIMIT_S)) as client:
                client.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
                answer = client.getresponse()
                text = answer.read()
            expect(answer.status in (200, 201), f"{answer.status} {text}")
            return {"Cookie": answer.headers["Set-Cookie"].split(";")[0], "X-CSRF-Token": "1"}, json.loads(text)

        def enter(body):
            return session_of("/v1/session", body)[0]

        def begin(headers):
            return platform.ok("POST", "/v1/session/totp", {"password": "correct horse"}, token="", headers=headers)

        def refuse(field, **more):
            platform.refused(401, "POST", "/v1/session", {**right, **more}, token="", field=field)

        first = enter(right)
        token = platform.ok("POST", "/v1/tokens", {"name": "t"}, token="", headers=first)["token"]
        platform.refused(400, "POST", "/v1/session/totp", {"password": "correct horse"}, token=token)
        platform.refused(400, "POST", "/v1/session/totp", {"password": "wrong horse"}, token="", headers=first,
                         field="password")
        secret = begin(first)
        expect(f"secret={secret['secret']}&" in secret["uri"] and secret["uri"].startswith("otpauth://totp/"), f"{secret}")
        other = enter(right)  # not confirmed: not asked
        secret = secret["secret"]
        wrong = next(f"{code:06}" for code in range(99)
                     if f"{code:06}" not in {code_of(secret, time.time() + 30 * i) for i in range(-5, 20)})
        platform.refused(400, "POST", "/v1/session/totp/confirm", {"code": wrong}, token="", headers=first, field="code")
        now = time.time()
        code = code_of(secret, now)
        enrolled, spare = session_of("/v1/session/totp/confirm", {"code": f"{code[:3]} {code[3:]}"}, **first)
        spare = spare["recovery_codes"]
        expect(len(set(spare)) == 8, f"{spare}")
        for gone in (first, other):  # they came without a code
            platform.refused(401, "GET", "/v1/session", token="", headers=gone)
        me = platform.ok("GET", "/v1/session", token="", headers=enrolled)
        expect((me["second_factor"], me["recovery_codes_left"]) == (True, 8), f"{me}")
        user = platform.ok("GET", "/v1/users")["items"][0]
        expect(user["second_factor"] is True and not [name for name in user if "totp" in name], f"{user}")
        refuse("code")
        refuse("code", code=code_of(secret, now))  # it has confirmed, and is used up
        refuse("password", password="wrong horse", code=spare[0])
        after = code_of(secret, now + 30)
        second = enter({**right, "code": after})
        refuse("code", code=after)
        enter({**right, "code": spare[0]})
        refuse("code", code=spare[0])
        expect(platform.call("GET", "/v1/session", token=token)[0] == 200, "a token was asked")
        expect(platform.ok("GET", "/v1/session", token="", headers=second)["recovery_codes_left"] == 7, "one was used")
        platform.stop_daemon(signal.SIGKILL)
        platform.start_daemon()
        for _ in range(4):
            refuse("code", code=wrong)
        refuse("code", code=spare[1])  # good, but too soon after so many
        platform.refused(403, "DELETE", "/v1/users/ann/totp", token="", headers=second)
        platform.ok("DELETE", "/v1/users/ann/totp")
        third = enter(right)
        platform.refused(409, "POST", "/v1/session/totp/remove", {"code": wrong}, token="", headers=third)
        again = begin(third)["secret"]
        expect(again != secret, "the old secret comes back")
        third, spare = session_of("/v1/session/totp/confirm", {"code": code_of(again, time.time())}, **third)
        spare = spare["recovery_codes"]
        platform.refused(409, "POST", "/v1/session/totp", {"password": "correct horse"}, token="", headers=third)
        state = pathlib.Path(platform.home) / ".local/share/corbel/daemon"
        for path in state.rglob("*"):
            expect(not path.is_file() or path.stat().st_mode & 0o77 == 0, f"others read {path}")
        log = (state / "audit.log").read_text() + "".join(platform.said)
        expect(not [text for text in (secret, again, *spare) if text in log], "a secret is in a log")
        platform.ok("POST", "/v1/session/totp/remove", {"code": spare[0]}, token="", headers=third)
        enter(right)


def bound_the_tokens(place):
    """A user has no more than 100; the owner of the host has as many as he likes, and all are listed."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "member"})
        own = cookie_of(platform, "ann", "correct horse")
        made = [platform.ok("POST", "/v1/tokens", {"name": "t"}, token="", headers=own)["id"] for _ in range(100)]
        error = platform.refused(403, "POST", "/v1/tokens", {"name": "t"}, token="", headers=own, code="quota")
        expect("100 tokens" in error["message"], f"{error}")
        platform.ok("DELETE", f"/v1/tokens/{made[0]}", token="", headers=own)
        platform.ok("POST", "/v1/tokens", {"name": "t"}, token="", headers=own)
        for _ in range(50):
            platform.ok("POST", "/v1/tokens", {"name": "host"})
        listed = [row["name"] for row in platform.ok("GET", "/v1/tokens")["items"]]
        expect((listed.count("t"), listed.count("host")) == (100, 50), f"{len(listed)} are listed")
        expect(len(platform.ok("GET", "/v1/tokens", token="", headers=own)["items"]) == 100, "its own")


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


if __name__ == "__main__":
    run_tests([
        ("know who calls", know_who_calls),
        ("sign in", sign_in),
        ("ask for a second factor", ask_for_a_second_factor),
        ("bound the tokens", bound_the_tokens),
        ("keep an administrator", keep_an_administrator),
    ])
