#!/usr/bin/python3
"""Disks in files and volumes in pools through the command line, judged by qemu-img."""

import contextlib
import json
import os
import pathlib
import random
import resource
import stat
import subprocess
import time

from harness import expect, run_tests
from test_cli import User

MIB = 1 << 20


def qemu(*words, status=0):
    result = subprocess.run(["qemu-img", *map(str, words)], check=False, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    expect(result.returncode == status, f"qemu-img {' '.join(map(str, words))}: {result.stdout}")
    return result.stdout


def write(path, offset, data, form="qcow2"):
    """Writes into an image as a machine would, by QEMU's own writer."""
    source = f"{path}.data"
    pathlib.Path(source).write_bytes(data)
    subprocess.run(["qemu-io", "-f", form, "-c", f"write -q -s {source} {offset} {len(data)}", path],
                   check=True, stdout=subprocess.DEVNULL)
    os.unlink(source)
    own(path)


def own(path):
    """The files of a home belong to its user, whoever wrote them."""
    parent = os.stat(os.path.dirname(path))
    if os.geteuid() == 0:
        os.chown(path, parent.st_uid, parent.st_gid)


def read(path):
    """The whole disk, as QEMU reads it."""
    target = f"{path}.out"
    qemu("convert", "-f", "qcow2", "-O", "raw", path, target)
    data = pathlib.Path(target).read_bytes()
    os.unlink(target)
    return data


def make_raw(user, name="disk.raw", seed=1):
    noise = random.Random(seed)
    path = pathlib.Path(user.home, name)
    with open(path, "wb") as file:
        file.truncate(96 * MIB)
        for _ in range(20):
            file.seek(noise.randrange(95 * MIB))
            file.write(noise.randbytes(noise.randrange(1, MIB)))
    own(path)
    return str(path)


def convert_disks(place):
    with User(place) as user:
        raw = make_raw(user)
        for words in ((), ("--compress",), ("--compress", "--compression", "zstd"),
                      ("--cluster-size", "4K", "--refcount-bits", "1"),
                      ("--extended-l2", "--cluster-size", "128K"), ("--preallocation", "metadata")):
            target = f"{user.home}/to.qcow2"
            user.run("image", "convert", raw, target, "--replace", *words)
            qemu("check", "-f", "qcow2", target)
            qemu("compare", "-f", "raw", "-F", "qcow2", raw, target)
            user.run("image", "convert", target, f"{user.home}/back.raw", "--replace")
            expect(pathlib.Path(user.home, "back.raw").read_bytes() == pathlib.Path(raw).read_bytes(),
                   f"{words}: the way back changes the disk")
        expect(os.stat(f"{user.home}/back.raw").st_blocks * 512 < 32 * MIB, "zeroes take room")
        _, err = user.run("image", "convert", raw, target, status=4)
        expect("--replace" in err, err)
        # An image of QEMU's making, with a backing image beside it.
        qemu("create", "-q", "-f", "qcow2", "-b", "to.qcow2", "-F", "qcow2", f"{user.home}/top.qcow2")
        own(f"{user.home}/top.qcow2")
        write(f"{user.home}/top.qcow2", 5 * MIB, b"new" * MIB)
        user.run("image", "convert", f"{user.home}/top.qcow2", f"{user.home}/flat.qcow2")
        qemu("compare", "-f", "qcow2", "-F", "qcow2", f"{user.home}/top.qcow2",
             f"{user.home}/flat.qcow2")
        expect(not [n for n in os.listdir(user.home) if "making" in n], "something was left")


def look_at_disks(place):
    with User(place) as user:
        raw = make_raw(user)
        disk = f"{user.home}/disk.qcow2"
        user.run("image", "convert", raw, disk)
        info = json.loads(user.run("image", "info", disk, "--json")[0])
        expect(info["format"] == "qcow2" and info["size_bytes"] == 96 * MIB, info)
        expect("96.0 MiB" in user.run("image", "info", disk)[0], "no length for people")
        ours = json.loads(user.run("image", "map", disk, "--json")[0])
        theirs = json.loads(qemu("map", "-f", "qcow2", "--output=json", disk))
        data = [(e["start"], e["length"], e.get("offset")) for e in ours if e["data"]]
        expect(data == [(e["start"], e["length"], e.get("offset")) for e in theirs if e["data"]],
               f"the map differs from qemu-img's:\n{data}")
        user.run("image", "compare", raw, disk)
        write(disk, 50 * MIB + 77 * 512, b"?" * 512)
        out, _ = user.run("image", "compare", raw, disk, status=6)
        expect("differ" in out, out)
        user.run("image", "check", disk)
        user.run("image", "resize", disk, "+32M")
        expect(json.loads(qemu("info", "-f", "qcow2", "--output=json", disk))["virtual-size"] ==
               128 * MIB, "not resized")
        _, err = user.run("image", "resize", disk, "64M", status=2)
        expect("shrink" in err, err)
        user.run("image", "resize", disk, "64M", "--shrink")
        qemu("check", "-f", "qcow2", disk)
        before = read(disk)
        user.run("image", "snapshot", "create", disk, "then")
        write(disk, 0, b"later" * 1000)
        user.run("image", "snapshot", "apply", disk, "then")
        expect(read(disk) == before, "the snapshot brings something else back")
        rows = json.loads(user.run("image", "snapshot", "list", disk, "--json")[0])
        expect([row["name"] for row in rows] == ["then"], rows)
        user.run("image", "snapshot", "delete", disk, "then")
        qemu("check", "-f", "qcow2", disk)
        user.run("image", "clone", disk, f"{user.home}/clone.qcow2")
        qemu("compare", "-f", "qcow2", "-F", "qcow2", disk, f"{user.home}/clone.qcow2")
        for words in (("info", f"{user.home}/nothing.qcow2"), ("map", f"{user.home}/nothing.raw")):
            user.run("image", *words, status=3)
        _, err = user.run("image", "info", f"{user.home}/disk", status=2)
        expect("raw or qcow2" in err, err)


def find_damage(place):
    with User(place) as user:
        raw = make_raw(user)
        disk = f"{user.home}/disk.qcow2"
        user.run("image", "convert", raw, disk)
        with open(disk, "r+b") as file:
            # The refcount of the first data cluster becomes 0.
            file.seek(48)
            table = int.from_bytes(file.read(8), "big")
            file.seek(table)
            block = int.from_bytes(file.read(8), "big")
            first = min(e["offset"] for e in
                        json.loads(user.run("image", "map", disk, "--json")[0]) if "offset" in e)
            file.seek(block + first // 65536 * 2)
            file.write(b"\0\0")
        user.run("image", "check", disk, status=6)
        out, _ = user.run("image", "check", disk, "--repair", "all")
        expect("no fault" not in out and "mended" in out, f"no word of what was mended: {out}")
        user.run("image", "check", disk)
        qemu("check", "-f", "qcow2", disk)
        qemu("compare", "-f", "raw", "-F", "qcow2", raw, disk)


def untangle_clusters(place):
    """The disk's data lie where tables do: one repair leaves nothing for another."""
    with User(place) as user:
        disk = f"{user.home}/tangled.qcow2"
        qemu("create", "-q", "-f", "qcow2", disk, "64M")
        write(disk, 0, random.Random(9).randbytes(MIB))
        with open(disk, "r+b") as file:
            def number(at):
                file.seek(at)
                return int.from_bytes(file.read(8), "big") & ((1 << 56) - 512)
            l1 = number(40)
            l2 = number(l1)
            for entry, host in ((1, l1), (3, l2)):
                file.seek(l2 + 8 * entry)
                file.write((1 << 63 | host).to_bytes(8, "big"))
        user.run("image", "check", disk, "--json", status=6)
        before = read(disk)
        out, _ = user.run("image", "check", disk, "--repair", "all", "--json")
        result = json.loads(out)
        expect(result["corruptions"] == 0 and result["corruptions_fixed"] > 0, result)
        qemu("check", "-f", "qcow2", disk)
        after = read(disk)
        expect(after[:65536] + after[131072:196608] + after[262144:] ==
               before[:65536] + before[131072:196608] + before[262144:], "a repair changed the disk")


def names(user):
    return sorted(os.listdir(user.home))


def keep_what_is_there(place):
    """Wrong words, a second command, a machine, or a name that is no file's: nothing gets lost."""
    with User(place) as user:
        raw = make_raw(user)
        disk = f"{user.home}/disk.qcow2"
        before = names(user)
        for wrong in (["1G", "--cluster-size", "3K"], ["1G", "--refcount-bits", "3"], ["1000"],
                      ["10P", "--cluster-size", "512"], ["1T", "--preallocation", "falloc"],
                      ["1G", "--backing", "gone.qcow2"]):
            process = user.start("image", "create", disk, *wrong, preexec=lambda: resource.setrlimit(
                resource.RLIMIT_FSIZE, (64 * MIB, 64 * MIB)))
            process.communicate()
            expect(process.returncode > 0 and names(user) == before, f"{wrong} left {names(user)}")
        user.run("image", "convert", raw, disk)
        content = pathlib.Path(disk).read_bytes()
        for wrong in ("--cluster-size", "3K"), ("--refcount-bits", "3"):
            user.run("image", "create", disk, "1G", "--replace", *wrong, status=2)
            expect(pathlib.Path(disk).read_bytes() == content, f"{wrong} emptied an image")
        both = [user.start("image", "convert", raw, f"{user.home}/both.qcow2", "--compress",
                           "--replace") for _ in range(2)]
        for process in both:
            _, err = process.communicate()
            expect(process.returncode == 0 or process.returncode == 4 and "in use" in err, err)
        expect(0 in [process.returncode for process in both], "neither of two conversions was made")
        qemu("compare", "-f", "raw", "-F", "qcow2", raw, f"{user.home}/both.qcow2")
        holder = subprocess.Popen(["qemu-io", "-f", "qcow2", disk], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        holder.stdin.write("read 0 512\n")
        holder.stdin.flush()
        while "read 512" not in holder.stdout.readline():
            pass
        for words in (("convert", raw, disk, "--replace"), ("create", disk, "1G", "--replace")):
            _, err = user.run("image", *words, status=4)
            expect("in use" in err, err)
        holder.communicate()
        qemu("compare", "-f", "raw", "-F", "qcow2", raw, disk)
        os.mkfifo(f"{user.home}/pipe.raw", 0o666)
        own(f"{user.home}/pipe.raw")
        for words in (("convert", raw, f"{user.home}/pipe.raw", "--replace"),
                      ("info", f"{user.home}/pipe.raw"), ("map", f"{user.home}/pipe.raw")):
            _, err = user.run("image", *words, status=2)
            expect("regular file" in err, err)
        expect(stat.S_ISFIFO(os.stat(f"{user.home}/pipe.raw").st_mode), "a pipe was replaced")
        os.symlink("disk.qcow2", f"{user.home}/link.qcow2")
        user.run("image", "convert", raw, f"{user.home}/link.qcow2", "--replace", "--compress")
        expect(os.path.islink(f"{user.home}/link.qcow2") and
               os.stat(disk).st_size < len(content), "what a link names was not replaced")
        user.run("image", "resize", raw, "+1", status=2)
        user.run("image", "compare", raw, disk)
        expect([n for n in names(user) if "making" in n] == [], f"left: {names(user)}")


def tell_any_name(place):
    """What an image holds is told as JSON whatever its bytes are."""
    with User(place) as user:
        disk = f"{user.home}/odd.qcow2"
        qemu("create", "-q", "-f", "qcow2", disk, "1M")
        subprocess.run([b"qemu-img", b"snapshot", b"-c", b"s\xff", disk.encode()], check=True)
        own(disk)
        rows = json.loads(user.run("image", "snapshot", "list", disk, "--json")[0])
        expect([row["name"] for row in rows] == ["s\N{REPLACEMENT CHARACTER}"], rows)
        subprocess.run([b"qemu-img", b"create", b"-q", b"-u", b"-f", b"qcow2", b"-F", b"raw", b"-b",
                        b"/etc/\xe2\x82", disk.encode(), b"1M"], check=True)
        own(disk)
        info = json.loads(user.run("image", "info", disk, "--json")[0])
        expect(info["backing"] == "/etc/\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", info)
        odd = os.path.join(user.home.encode(), b"odd-\xc3.qcow2")
        os.rename(disk, odd)
        info = json.loads(user.run("image", "info", os.fsdecode(odd), "--json")[0])
        expect(info["file"].endswith("odd-\N{REPLACEMENT CHARACTER}.qcow2"), info)


def find_what_it_stands_on(place):
    """A clone is opened by what its maker typed, whatever that was."""
    with User(place) as user:
        disk = f"{user.home}/base.qcow2"
        user.run("image", "convert", make_raw(user), disk)
        os.mkdir(f"{user.home}/sub")
        own(f"{user.home}/sub")
        for base, clone in (("./base.qcow2", "one.qcow2"), (disk, "two.qcow2"),
                            ("sub/../base.qcow2", f"{user.home}/three.qcow2"),
                            ("base.qcow2", "./four.qcow2")):
            _, err = user.run("image", "clone", base, clone)
            expect(err == "", err)
            user.run("image", "compare", disk, clone)
        for words in (("clone", "base.qcow2", "sub/five.qcow2"),
                      ("create", "sub/six.qcow2", "--backing", "../base.qcow2")):
            _, err = user.run("image", *words)
            expect("--backing-dir" in err, f"no word of what it takes to open it: {err}")
        _, err = user.run("image", "map", "sub/five.qcow2", status=1)
        expect("below" in err, err)
        user.run("image", "map", "sub/five.qcow2", "--backing-dir", ".")
        user.run("image", "map", "sub/five.qcow2", "--backing-dir", user.home)


def volume(user, name, *words):
    return json.loads(user.run("pool-volume", "show", name, "--json", *words)[0])


def keep_volumes(place):
    with User(place) as user:
        user.run("pool-volume", "create", "a", "64M")
        _, err = user.run("pool-volume", "create", "a", "64M", status=4)
        expect("already" in err, err)
        _, err = user.run("pool-volume", "show", "b", status=3)
        expect("corbel pool-volume list" in err, err)
        path = volume(user, "a")["path"]
        write(path, 0, b"a" * MIB)
        content = read(path)
        user.run("pool-volume", "clone", "a", "b")
        expect(read(volume(user, "b")["path"]) == content, "the clone is not a copy")
        write(volume(user, "b")["path"], 0, b"b" * MIB)
        write(volume(user, "a")["path"], MIB, b"A" * MIB)
        expect(read(volume(user, "b")["path"])[:2 * MIB] == b"b" * MIB + bytes(MIB), "b is wrong")
        expect(read(volume(user, "a")["path"])[:2 * MIB] == b"a" * MIB + b"A" * MIB, "a is wrong")
        user.run("pool-volume", "resize", "a", "+64M")
        expect(volume(user, "a")["size_bytes"] == 128 * MIB, "not resized")
        user.run("pool-volume", "delete", "b")
        directory = os.path.dirname(volume(user, "a")["path"])
        layers = [n for n in os.listdir(directory) if n.startswith("layer")]
        expect(len(layers) == 1, f"a lone volume stands on {layers}")
        expect(read(volume(user, "a")["path"])[:2 * MIB] == b"a" * MIB + b"A" * MIB, "a is wrong")
        user.run("pool-volume", "delete", "a")
        expect(json.loads(user.run("pool-volume", "list", "--json")[0]) == [], "a volume is left")
        expect([n for n in os.listdir(directory) if n.startswith("layer")] == [], "layers are left")


def clone_at_once(place):
    with User(place) as user:
        user.run("pool-volume", "create", "big", "10G")
        write(volume(user, "big")["path"], 0, random.Random(3).randbytes(64 * MIB))
        start = time.monotonic()
        user.run("pool-volume", "clone", "big", "copy")
        print(f"# a clone of 10 GiB took {1000 * (time.monotonic() - start):.0f} ms with the program's start")
        expect(volume(user, "copy")["allocated_bytes"] < MIB, "the clone copied data")
        qemu("compare", "-f", "qcow2", "-F", "qcow2", volume(user, "big")["path"],
             volume(user, "copy")["path"])


def keep_a_tree_of_snapshots(place):
    with User(place) as user:
        noise = random.Random(11)
        user.run("pool-volume", "create", "v", "32M")
        was = {}
        for number in range(10):
            for _ in range(3):
                write(volume(user, "v")["path"], noise.randrange(60) * 512 * 1024,
                      noise.randbytes(256 * 1024))
            user.run("pool-volume", "snapshot", "create", "v", f"s{number}")
            was[f"s{number}"] = read(volume(user, "v")["path"])
        now = read(volume(user, "v")["path"])
        # The middle goes; everything else stays what it was.
        for name in ("s5", "s4", "s7"):
            user.run("pool-volume", "snapshot", "delete", "v", name)
            del was[name]
            expect(read(volume(user, "v")["path"]) == now, f"deleting {name} changed the volume")
        for name, content in was.items():
            user.run("pool-volume", "clone", "v", "probe", "--snapshot", name)
            expect(read(volume(user, "probe")["path"]) == content, f"{name} has changed")
            user.run("pool-volume", "delete", "probe")
        rows = {r["name"]: r["parent"] for r in
                json.loads(user.run("pool-volume", "snapshot", "list", "v", "--json")[0])}
        expect(rows["s6"] == "s3" and rows["s8"] == "s6" and rows["s0"] == "", rows)
        # Back to the past, and another way from there.
        user.run("pool-volume", "snapshot", "revert", "v", "s2")
        expect(read(volume(user, "v")["path"]) == was["s2"], "revert brings something else back")
        write(volume(user, "v")["path"], 0, b"fork" * 1000)
        fork = read(volume(user, "v")["path"])
        user.run("pool-volume", "snapshot", "create", "v", "fork")
        user.run("pool-volume", "snapshot", "delete", "v", "s2")
        expect(read(volume(user, "v")["path"]) == fork, "the fork has changed")
        user.run("pool-volume", "snapshot", "revert", "v", "s9")
        expect(read(volume(user, "v")["path"]) == was["s9"], "the other branch has changed")
        directory = os.path.dirname(volume(user, "v")["path"])
        for name in sorted(os.listdir(directory)):
            if name.startswith("layer"):
                qemu("check", "-f", "qcow2", os.path.join(directory, name))


def respect_users_of_volumes(place):
    with User(place) as user:
        user.run("pool-volume", "create", "v", "32M")
        path = volume(user, "v")["path"]
        # A machine holds its disk: the lock is what tells.
        holder = subprocess.Popen(["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        holder.stdin.write("read 0 512\n")
        holder.stdin.flush()
        while "read 512" not in holder.stdout.readline():
            pass
        for words in (("snapshot", "create", "v", "s"), ("resize", "v", "64M"), ("delete", "v")):
            _, err = user.run("pool-volume", *words, status=4)
            expect("in use" in err or "lock" in err, err)
        holder.stdin.close()
        holder.wait()
        user.run("pool-volume", "snapshot", "create", "v", "s")


def account_for_room(place):
    with User(place) as user:
        user.run("pool", "create", "small", f"{user.home}/small", "--capacity", "8M",
                 "--threshold", "50")
        user.run("pool", "create", "small", f"{user.home}/other", status=4)
        user.run("pool-volume", "create", "v", "1G", "--pool", "small")
        rows = {r["name"]: r for r in json.loads(user.run("pool", "list", "--json")[0])}
        small = rows["small"]
        expect(small["provisioned_bytes"] == 1 << 30 and small["allocated_bytes"] < MIB and
               small["capacity_bytes"] == 8 * MIB and not small["over_threshold"], small)
        write(volume(user, "v", "--pool", "small")["path"], 0, random.Random(5).randbytes(5 * MIB))
        _, err = user.run("pool-volume", "create", "w", "1G", "--pool", "small")
        expect("nearly full" in err, err)
        write(volume(user, "w", "--pool", "small")["path"], 0, random.Random(6).randbytes(4 * MIB))
        _, err = user.run("pool-volume", "create", "x", "1G", "--pool", "small", status=1)
        expect("full" in err, err)
        _, err = user.run("pool", "remove", "small", status=4)
        expect("2 volumes" in err, err)
        for name in ("v", "w"):
            user.run("pool-volume", "delete", name, "--pool", "small")
        user.run("pool", "remove", "small")
        _, err = user.run("pool-volume", "list", "--pool", "small", status=3)
        expect("corbel pool list" in err, err)


FILL_POOL = """set -e
mount -t tmpfs -o size=8m none "$HOME/full"
corbel pool create small "$HOME/full/pool"
corbel pool-volume create v 1G --pool small
corbel pool-volume copy-from w "$HOME/half.raw" --pool small
if corbel pool-volume copy-from x "$HOME/half.raw" --pool small; then exit 9; fi
test $(ls "$HOME"/full/pool/layer-* | wc -l) = 2
dd if=/dev/zero of="$HOME/full/other" bs=64k 2>/dev/null || :
dd if=/dev/zero of="$HOME/full/other2" bs=512 2>/dev/null || :
if corbel pool-volume create y 1G --pool small; then exit 9; fi
corbel pool-volume delete w --pool small
corbel pool-volume create y 1G --pool small
dd if=/dev/zero of="$HOME/full/other3" bs=512 2>/dev/null || :
corbel pool-volume delete y --pool small
corbel pool-volume list --pool small --json
"""


def make_room_in_a_full_pool(place):
    """What takes the room can be deleted when there is none, and a copy that failed takes none."""
    with User(place) as user:
        os.mkdir(f"{user.home}/full")
        pathlib.Path(user.home, "half.raw").write_bytes(random.Random(2).randbytes(5 * MIB))
        words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-rm"]
        if subprocess.run([*words, "mount", "-t", "tmpfs", "none", f"{user.home}/full"], check=False,
                          stderr=subprocess.DEVNULL).returncode != 0:
            print("# this host lets nobody mount a small file system: not tried", flush=True)
            return
        path = f"{os.path.dirname(user.corbel)}:{user.env['PATH']}"
        done = subprocess.run([*words, "sh", "-c", FILL_POOL], env={**user.env, "PATH": path}, text=True,
                              check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        expect(done.returncode == 0, done.stdout + done.stderr)
        names = [row["name"] for row in json.loads(done.stdout)]
        expect(names == ["v"], f"{names} {done.stderr}")


def tidy_up_after_crashes(place):
    with User(place) as user:
        user.run("pool-volume", "create", "v", "32M")
        path = volume(user, "v")["path"]
        directory = os.path.dirname(path)
        write(path, 0, b"kept" * 1000)
        content = read(path)
        user.run("pool-volume", "snapshot", "create", "v", "s")
        # A layer that was made by a command which died before its record was written.
        orphan = os.path.join(directory, "layer-900.qcow2")
        qemu("create", "-q", "-f", "qcow2", orphan, "1M")
        own(orphan)
        user.run("pool-volume", "create", "w", "32M")
        expect(not os.path.exists(orphan), "the orphan is still there")
        # A merge that died after its last step: the lower layer has taken the upper one's place.
        record = json.loads(pathlib.Path(directory, "pool.json").read_text())
        head = record["volumes"]["v"]["head"]
        below = record["layers"][str(head)]
        del record["volumes"]["v"]["snapshots"]["s"]
        record["volumes"]["v"]["parent"] = ""
        pathlib.Path(directory, "pool.json").write_text(json.dumps(record))
        own(os.path.join(directory, "pool.json"))
        os.rename(os.path.join(directory, f"layer-{below}.qcow2"),
                  os.path.join(directory, f"layer-{head}.qcow2"))
        user.run("pool-volume", "delete", "w")
        expect(read(volume(user, "v")["path"]) == content, "the volume has changed")
        pathlib.Path(directory, "pool.json").write_text("{}")
        own(os.path.join(directory, "pool.json"))
        _, err = user.run("pool-volume", "create", "x", "1M", status=1)
        expect("damaged" in err, err)
        expect(os.path.exists(path) or os.listdir(directory), "a damaged record cost layers")


def lose_nothing_when_killed(place):
    with User(place) as user:
        noise = random.Random(23)
        user.run("pool-volume", "create", "v", "48M")
        was = {}
        for number in range(8):
            write(volume(user, "v")["path"], noise.randrange(32) * MIB, noise.randbytes(12 * MIB))
            was[f"s{number}"] = read(volume(user, "v")["path"])
            user.run("pool-volume", "snapshot", "create", "v", f"s{number}")
        for number in (1, 3, 4, 6):
            # Whenever the end comes, the others stay what they are.
            process = user.start("pool-volume", "snapshot", "delete", "v", f"s{number}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(noise.random() * 0.2)
            process.kill()
            process.communicate()
            rows = json.loads(user.run("pool-volume", "snapshot", "list", "v", "--json")[0])
            for name in sorted({row["name"] for row in rows} & set(was)):
                user.run("pool-volume", "clone", "v", "probe", "--snapshot", name)
                expect(read(volume(user, "probe")["path"]) == was[name], f"{name} has changed")
                user.run("pool-volume", "delete", "probe")
            expect(read(volume(user, "v")["path"]) == was["s7"], "the volume has changed")
            kept = {row["name"] for row in rows} - {f"s{number}"}
            expect(kept >= {name for name in was if name != f"s{number}"}, f"lost: {kept}")
            was.pop(f"s{number}")
            if f"s{number}" in {row["name"] for row in rows}:
                user.run("pool-volume", "snapshot", "delete", "v", f"s{number}")


def make_a_huge_volume(place):
    """16 TiB, thin: what is written near its end is there, and the file stays small."""
    with User(place) as user:
        user.run("pool-volume", "create", "huge", "16T")
        path = volume(user, "huge")["path"]
        end = (16 << 40) - 65536
        for offset in (0, 3 << 40, end):
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 {offset} 65536", path], check=True)
        for offset in (0, 3 << 40, end):
            said = subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"read -q -P 7 {offset} 65536", path],
                                  check=True, stdout=subprocess.PIPE, text=True).stdout
            expect(said == "", f"at {offset}: {said}")
        user.run("image", "check", path)
        used = os.stat(path).st_blocks * 512
        expect(used < 64 << 20, f"{used} bytes for 192 KiB of data")
        # Whoever looked at each of its bytes would be at it for hours.
        user.run("image", "convert", path, f"{user.home}/copy.qcow2")
        user.run("image", "compare", path, f"{user.home}/copy.qcow2")
        qemu("compare", "-f", "qcow2", "-F", "qcow2", path, f"{user.home}/copy.qcow2")
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 8 {end + 512} 512",
                        f"{user.home}/copy.qcow2"], check=True)
        out, _ = user.run("image", "compare", path, f"{user.home}/copy.qcow2", status=6)
        expect(str(end + 512) in out, out)


TESTS = [
    ("a volume of 16 TiB is thin and whole", make_a_huge_volume),
    ("disks are converted both ways, packed and not", convert_disks),
    ("disks are described, mapped, compared, resized and cloned", look_at_disks),
    ("damage is found and mended", find_damage),
    ("clusters that overlap are told apart by one repair", untangle_clusters),
    ("no mistake costs what is there", keep_what_is_there),
    ("names of any bytes are told", tell_any_name),
    ("clones find what they stand on", find_what_it_stands_on),
    ("volumes are made, cloned, resized and deleted", keep_volumes),
    ("a clone of a long volume copies nothing", clone_at_once),
    ("a tree of snapshots keeps its contents when its middle goes", keep_a_tree_of_snapshots),
    ("deleting a snapshot may be killed at any time", lose_nothing_when_killed),
    ("a volume in use is left alone", respect_users_of_volumes),
    ("a pool accounts for its room", account_for_room),
    ("a full pool lets go of volumes", make_room_in_a_full_pool),
    ("what a crash leaves over is tidied up", tidy_up_after_crashes),
]

if __name__ == "__main__":
    run_tests(TESTS)
