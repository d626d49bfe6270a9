#!/usr/bin/python3
"""Snapshots of disks and volumes: what a guest wrote before one comes back, and nothing later."""

import json
import os

from harness import expect, run_tests
from platform_rig import Platform, Socket, give_disk


class Guest:
    """A busybox machine and its root shell."""

    def __init__(self, platform, token, name):
        self.console = Socket(platform.port, f"/v1/instances/{name}/console", token)
        expect(self.console.status == 101, f"{name}: {self.console.status}")
        self.count = 0
        self.console.send(b"\n")
        self.console.wait_text(b"# ")

    def run(self, command):
        """What the command says."""
        self.count += 1
        mark = b"-done-%d" % self.count
        self.console.text = b""
        self.console.send(b" " + command.encode() + b"; echo -do''ne-%d\n" % self.count)
        self.console.wait_text(mark)
        return self.console.text.decode(errors="replace")

    def write(self, disk, word):
        self.run(f"echo {word} | dd of=/dev/{disk} conv=fsync,sync bs=512 seek=100 2>/dev/null")

    def read(self, disk):
        text = self.run(f"echo =$(dd if=/dev/{disk} bs=512 skip=100 count=1 2>/dev/null | head -c 8 | head -n 1)=")
        return text.rsplit("=", 2)[1].strip("\0\r\n ")


def member(platform):
    return platform.ok("POST", "/v1/tokens", {"name": "t", "role": "member"})["token"]


def make(platform, plural, wanted):
    answer = platform.ok("POST", f"/v1/{plural}", wanted)
    if "operation" in answer:
        platform.finish(answer)
    return answer[plural[:-1]]["id"]


def show(platform, plural, name):
    return platform.ok("GET", f"/v1/{plural}/{name}")


def delete(platform, plural, name):
    answer = platform.ok("DELETE", f"/v1/{plural}/{name}")
    if "operation" in answer:
        platform.finish(answer)


def act(platform, path):
    platform.finish(platform.ok("POST", path, {"force": True} if path.endswith("stop") else None))


def bring_back_a_disk(place):
    """A running machine's disk: snapshots in a tree, a machine from one, and back to another."""
    with Platform(place) as platform:
        give_disk(platform)
        token = member(platform)
        platform.launch("vm")
        guest = Guest(platform, token, "vm")
        for word in ("one", "two"):
            guest.write("vda", word)
            make(platform, "snapshots", {"name": word, "instance": "vm"})
        guest.write("vda", "three")
        expect(guest.read("vda") == "three", "the guest lost its disk")
        one, two = show(platform, "snapshots", "one"), show(platform, "snapshots", "two")
        expect(one["live"] and "parent" not in one and two["parent"] == one["id"], f"{one} {two}")
        expect(show(platform, "instances", "vm")["snapshot"] == two["id"], "the machine's place in the tree")

        # Two others begin as it was, while it runs on; what they write is theirs.
        platform.launch("copy", image=None, snapshot="one")
        copy = Guest(platform, token, "copy")
        expect(copy.read("vda") == "one", "the copy has something else")
        copy.write("vda", "mine")
        make(platform, "snapshots", {"name": "of-copy", "instance": "copy"})
        expect(guest.read("vda") == "three", "the copy writes to the first")

        platform.refused(409, "POST", "/v1/snapshots/one/restore", code="conflict")  # it runs
        act(platform, "/v1/instances/vm/stop")
        act(platform, "/v1/snapshots/one/restore")
        make(platform, "snapshots", {"name": "fork", "instance": "vm"})
        expect(show(platform, "snapshots", "fork")["parent"] == one["id"], "no fork in the tree")
        act(platform, "/v1/instances/vm/start")
        expect(Guest(platform, token, "vm").read("vda") == "one", "not what it was at the snapshot")
        act(platform, "/v1/instances/vm/stop")
        act(platform, "/v1/snapshots/two/restore")
        act(platform, "/v1/instances/vm/start")
        expect(Guest(platform, token, "vm").read("vda") == "two", "not what it was at the second")

        # The middle goes, and the machine with it; what stands on it stays.
        delete(platform, "snapshots", "one")
        expect("parent" not in show(platform, "snapshots", "two"), "a parent that there is not")
        delete(platform, "instances", "vm")
        delete(platform, "instances", "copy")
        platform.refused(409, "POST", "/v1/snapshots/two/restore", code="conflict")
        for name, word in (("two", "two"), ("fork", "one"), ("of-copy", "mine")):
            platform.launch(f"from-{name}", image=None, snapshot=name)
            expect(Guest(platform, token, f"from-{name}").read("vda") == word, name)
            delete(platform, "snapshots", name)
            expect(Guest(platform, token, f"from-{name}").read("vda") == word, f"{name} after that")


def bring_back_a_volume(place):
    """Volumes: the same while a machine has them, and while none has."""
    with Platform(place) as platform:
        give_disk(platform)
        token = member(platform)
        make(platform, "volumes", {"name": "data", "size_gib": 1})
        platform.launch("vm", volumes=["data"])
        guest = Guest(platform, token, "vm")
        guest.write("vdb", "one")
        make(platform, "snapshots", {"name": "one", "volume": "data"})
        guest.write("vdb", "two")
        make(platform, "snapshots", {"name": "two", "volume": "data"})
        guest.write("vdb", "three")
        expect(show(platform, "snapshots", "two")["parent"] == show(platform, "snapshots", "one")["id"], "no tree")
        for name in ("one", "two"):
            make(platform, "volumes", {"name": f"of-{name}", "snapshot": name})
        make(platform, "snapshots", {"name": "root", "instance": "vm"})
        make(platform, "volumes", {"name": "of-root", "snapshot": "root", "size_gib": 5})
        platform.launch("other", volumes=["of-two", "of-one", "of-root"])
        other = Guest(platform, token, "other")
        expect((other.read("vdb"), other.read("vdc")) == ("two", "one"), "other volumes")
        sizes = other.run("cat /sys/block/vdb/size /sys/block/vdd/size")
        expect("2097152" in sizes and "10485760" in sizes, sizes)
        delete(platform, "snapshots", "one")  # in use, and needed by others
        expect((guest.read("vdb"), other.read("vdc")) == ("three", "one"), "lost with the snapshot")

        act(platform, "/v1/instances/vm/stop")
        act(platform, "/v1/snapshots/two/restore")
        act(platform, "/v1/instances/vm/start")
        expect(Guest(platform, token, "vm").read("vdb") == "two", "not what it was")
        delete(platform, "instances", "vm")
        make(platform, "snapshots", {"name": "rest", "volume": "data"})
        delete(platform, "volumes", "data")
        make(platform, "volumes", {"name": "again", "snapshot": "rest"})
        delete(platform, "snapshots", "rest")
        delete(platform, "snapshots", "two")
        platform.launch("last", volumes=["again"])
        expect(Guest(platform, token, "last").read("vdb") == "two", "lost with its volume")
        pool = os.path.join(platform.home, ".local/share/corbel/daemon/volumes")
        record = json.load(open(os.path.join(pool, "pool.json")))
        expect(sorted(record["volumes"]) == sorted(show(platform, "volumes", name)["id"]
               for name in ("of-one", "of-two", "of-root", "again")), f"{record}")


def refuse_what_cannot_be(place):
    with Platform(place) as platform:
        give_disk(platform)
        make(platform, "volumes", {"name": "data", "size_gib": 1})
        make(platform, "instances", {"name": "vm", "image": "busybox", "desired": "stopped"})
        for body, status, field in (({}, 400, "instance"), ({"instance": "vm", "volume": "data"}, 400, "volume"),
                                    ({"instance": "none"}, 404, "instance"), ({"volume": "none"}, 404, "volume"),
                                    ({"volume": "../data"}, 400, "volume"), ({"volume": "data", "live": True}, 400, "live"),
                                    ({"volume": "data", "name": "a/b"}, 400, "name")):
            platform.refused(status, "POST", "/v1/snapshots", body, field=field)
        make(platform, "snapshots", {"name": "s", "volume": "data"})
        for body, status, field in (({"snapshot": "s"}, 400, "snapshot"), ({"name": "x"}, 400, "image"),
                                    ({"image": "busybox", "snapshot": "s"}, 400, "image"),
                                    ({"snapshot": "none"}, 404, "snapshot")):
            platform.refused(status, "POST", "/v1/instances", body, field=field)
        platform.refused(400, "POST", "/v1/volumes", {"name": "x"}, field="size_gib")
        platform.refused(404, "POST", "/v1/volumes", {"snapshot": "none"}, field="snapshot")

        # Quotas count them, in number and in size.
        platform.ok("PATCH", "/v1/projects/default", {"max_snapshots": 2})
        make(platform, "snapshots", {"name": "t", "volume": "data"})
        platform.refused(403, "POST", "/v1/snapshots", {"volume": "data"}, code="quota")
        platform.ok("PATCH", "/v1/projects/default", {"max_snapshots": 0, "max_volume_gib": 4})
        make(platform, "snapshots", {"name": "u", "volume": "data"})
        platform.refused(403, "POST", "/v1/snapshots", {"volume": "data"}, code="quota")
        platform.refused(403, "POST", "/v1/volumes", {"size_gib": 1}, code="quota")
        expect([row["name"] for row in platform.ok("GET", "/v1/snapshots")["items"]] == ["s", "t", "u"], "the list")
        for name in ("s", "t", "u"):
            delete(platform, "snapshots", name)
        delete(platform, "volumes", "data")


if __name__ == "__main__":
    run_tests([
        ("a disk goes back to its snapshots, and machines begin from them", bring_back_a_disk),
        ("a volume goes back to its snapshots, in use or not", bring_back_a_volume),
        ("what cannot be is refused, and quotas count snapshots", refuse_what_cannot_be),
    ])
