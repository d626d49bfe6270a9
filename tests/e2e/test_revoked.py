#!/usr/bin/python3
"""What corbeld still tells when the right to it has gone."""

import contextlib
import json
import threading

from harness import Failure, expect, run_tests
from platform_rig import Platform, Socket, cookie_of, rest_of, watch_changes


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

        # A role that was made says less.
        looks = {"effect": "allow", "actions": ["instance.get", "instance.list"], "resources": ["*"]}
        platform.ok("POST", "/v1/roles", {"name": "typist", "statements": [
            looks, {"effect": "allow", "actions": ["instance.console", "watch"], "resources": ["*"]}]})
        cookie = user("typist", "tom")
        opened = [watch_changes(platform, headers=cookie), socket_of(cookie)]
        platform.ok("PATCH", "/v1/roles/typist", {"statements": [looks]})
        change("after-the-role")
        expect(not any(b"after-the-role" in rest_of(peer) for peer in opened), "one with less of a role is told of changes")
        change("to-the-last")
        text = b""
        while b"to-the-last" not in text:
            text += stays.recv(65536)
        stays.close()


if __name__ == "__main__":
    run_tests([
        ("end what is revoked", end_what_is_revoked),
    ])
