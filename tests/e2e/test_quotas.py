#!/usr/bin/python3
"""What a project may have, also when all is asked for at once."""

import concurrent.futures

from harness import expect, run_tests
from platform_rig import Platform

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


def keep_to_quotas(place):
    """A project's cards, alarms, key pairs and webhooks stay within its limits, also when all ask at once; what is let go can be had again."""
    with Platform(place) as platform:
        platform.ok("PATCH", "/v1/projects/default", {"max_nics": 5, "max_alarms": 3, "max_keys": 2, "max_hooks": 4})
        alarm = {"metric": "cpu_percent", "threshold": 90, "tag": "tier=web"}
        machine = {"image": "busybox", "memory_mib": 128, "desired": "stopped"}
        hook = {"webhook": "https://example.org/"}
        wanted = [("nics", {}), ("instances", machine), ("alarms", alarm), ("hooks", hook)] * 8
        wanted += [("keys", {"name": f"key-{number}", "public_key": KEY}) for number in range(6)]
        with concurrent.futures.ThreadPoolExecutor(len(wanted)) as pool:
            answers = list(pool.map(lambda one: platform.call("POST", f"/v1/{one[0]}", one[1]), wanted))
        for status, answer in answers:
            expect(status in (201, 202) or (status, answer["error"]["code"]) == (403, "quota"), f"{status} {answer}")
        made = {path: sum(status < 300 for (status, _), (of, _) in zip(answers, wanted) if of == path)
                for path in ("nics", "instances", "alarms", "keys", "hooks")}
        expect(made["nics"] + made["instances"] == 5 and (made["alarms"], made["keys"], made["hooks"]) == (3, 2, 4), f"{made}")
        cards, alarms = (platform.ok("GET", f"/v1/{path}")["items"] for path in ("nics", "alarms"))
        expect((len(cards), len(alarms)) == (5, 3), f"{cards} {alarms}")
        expect(len(platform.ok("GET", "/v1/instances")["items"]) == made["instances"], "one without a card")

        # What is refused says of what there are too many; what there is can be changed, and others have their own.
        error = platform.refused(403, "POST", "/v1/nics", {}, code="quota")
        expect("5 network cards" in error["message"], f"{error}")
        platform.refused(403, "POST", "/v1/nics?dry_run=true", {}, code="quota")
        expect("3 alarms" in platform.refused(403, "POST", "/v1/alarms", alarm, code="quota")["message"], "of what?")
        expect("4 webhooks" in platform.refused(403, "POST", "/v1/hooks", hook, code="quota")["message"], "of what?")
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


if __name__ == "__main__":
    run_tests([
        ("keep to quotas", keep_to_quotas),
    ])
