#!/usr/bin/python3
"""What the daemon does by itself now and then: copies of its records, one of which is put back, and
old records that go."""

import base64
import pathlib
import shutil
import signal
import struct
import subprocess

from harness import LIMIT_S, expect, run_tests
from platform_rig import Platform


def backups(platform):
    return sorted((state(platform) / "backups").glob("state-*.db"))


def state(platform):
    return pathlib.Path(platform.home) / ".local/share/corbel/daemon"


def corbeld(platform, *arguments):
    command = platform.place.wrap([platform.corbeld, *arguments], platform.container)
    return subprocess.run(command, cwd=platform.home, env=platform.env, text=True, timeout=LIMIT_S,
                          capture_output=True, stdin=subprocess.DEVNULL)


def await_backup(platform):
    """One that was begun after now."""
    before = backups(platform)
    while len(set(backups(platform)) - set(before)) < 2:  # the first may have been begun before
        pass
    return backups(platform)[-1]


def put_a_copy_back(place):
    with Platform(place, "--backup-interval", "1", "--keep-backups", "3") as platform:
        old = platform.launch("old")
        pid = platform.ok("GET", f"/v1/instances/{old}")["pid"]
        copy = pathlib.Path(platform.home) / "copy.db"
        shutil.copy(await_backup(platform), copy)
        place.own(copy)
        await_backup(platform)
        expect(len(backups(platform)) <= 4, f"old copies stay: {backups(platform)}")
        expect(oct(backups(platform)[0].stat().st_mode)[-3:] == "600", "others can read a copy")
        young = platform.ok("POST", "/v1/instances", {"name": "young", "image": "busybox", "desired": "stopped"})
        platform.finish(young)
        young = young["instance"]["id"]
        ran = corbeld(platform, "--restore", copy)
        expect(ran.returncode == 1 and "stop the daemon" in ran.stderr, f"a store in use was replaced: {ran}")
        platform.stop_daemon(signal.SIGKILL)

        database = state(platform) / "state.db"
        whole = database.read_bytes()
        database.write_bytes(whole[:len(whole) // 2])
        ran = corbeld(platform, "--socket", f"{platform.home}/other.sock")
        expect(ran.returncode == 1 and "damaged" in ran.stderr, f"half a database is taken: {ran}")
        bad = pathlib.Path(platform.home) / "bad.db"
        bad.write_bytes(copy.read_bytes()[:-4096])
        place.own(bad)
        before = database.read_bytes()
        ran = corbeld(platform, "--restore", bad)
        expect(ran.returncode == 1 and database.read_bytes() == before, f"a damaged copy was put back: {ran}")
        ran = corbeld(platform, "--restore", copy)
        expect(ran.returncode == 0, f"{ran}")
        expect((state(platform) / "state.db.before-restore").read_bytes() == before, "what was there is gone")

        platform.start_daemon()
        shown = platform.ok("GET", f"/v1/instances/{old}")
        expect(shown["state"] == "running" and shown["pid"] == pid, f"another machine, or none: {shown}")
        platform.refused(404, "GET", f"/v1/instances/{young}")
        expect((state(platform) / "machines" / young).exists(), "what is younger than the copy was removed")
        platform.stop_daemon()
        (state(platform) / "restored").unlink()
        platform.start_daemon()
        expect(not (state(platform) / "machines" / young).exists(), "what belongs to nothing stays")
        expect(platform.state(old) == "running", "the other was removed, too")


def forget_old_events(place):
    """So many are kept, the newest; other projects keep theirs."""
    with Platform(place, "--backup-interval", "1", "--keep-events", "5") as platform:
        platform.ok("POST", "/v1/projects", {"name": "quiet"})
        blob = struct.pack("!I11sI32s", 11, b"ssh-ed25519", 32, bytes(32))
        key = "ssh-ed25519 " + base64.b64encode(blob).decode()
        platform.ok("POST", "/v1/keys?project=quiet", {"name": "q", "public_key": key})
        for i in range(12):
            platform.ok("POST", "/v1/keys", {"name": f"k{i}", "public_key": key})
        while len(events := platform.ok("GET", "/v1/events?project=default&limit=1000")["items"]) > 5:
            pass
        expect([f'"k{i}"' in event["text"] for i, event in zip(range(7, 12), events)] == [True] * 5, f"{events}")
        expect(len(platform.ok("GET", "/v1/events?project=quiet")["items"]) == 1, "another project's are gone")
        expect(len(platform.ok("GET", "/v1/keys?project=default")["items"]) == 12, "more than events went")


if __name__ == "__main__":
    run_tests([("put a copy back", put_a_copy_back), ("forget old events", forget_old_events)])
