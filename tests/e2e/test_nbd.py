#!/usr/bin/python3
"""`corbel nbd serve` as clients that others wrote see it: qemu-img, qemu-io, nbdinfo, nbdcopy; and
clients that misbehave. Disks on servers of others through `corbel image`."""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import select
import signal
import socket
import struct
import subprocess

from harness import LIMIT_S, Control, Machine, expect, guest, run_tests
from test_cli import User

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")
MIB = 1 << 20
SIZE = 64 * MIB


class Serving:
    """A server, until the block ends; then a signal ends it, with status 0 and no socket left."""

    def __init__(self, user, disk, *words):
        self.socket = os.path.join(user.home, "s")
        self.process = user.start("nbd", "serve", disk, "--socket", self.socket, *words)
        self.uri = self.process.stdout.readline().strip()
        expect(self.uri.startswith("nbd+unix:///"), f"no address: {self.uri}")

    def connect(self):
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(LIMIT_S)
        peer.connect(self.socket)
        return peer

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=LIMIT_S)
        if kind is None and self.process.returncode != -signal.SIGKILL:
            expect(self.process.returncode == 0, f"status {self.process.returncode}: {err}")
            expect(not os.path.exists(self.socket), "the socket is left")


def tool(*words, status=0):
    result = subprocess.run([str(word) for word in words], check=False, text=True,
                            timeout=LIMIT_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    expect((result.returncode == 0) == (status == 0), f"{words}: {result.stdout}")
    return result.stdout


def make_disk(user, name="disk.qcow2"):
    disk = os.path.join(user.home, name)
    user.run("image", "create", disk, str(SIZE))
    return disk


def use_every_command(place):
    with User(place) as user:
        for name in ("disk.qcow2", "disk.raw"):
            disk = make_disk(user, name)
            with Serving(user, disk, "--name", "mine") as server:
                info = json.loads(tool("nbdinfo", "--no-content", "--json", server.uri))
                export = info["exports"][0]
                expect(export["export-size"] == SIZE and export["can_multi_conn"] and
                       export["can_fua"] and export["can_trim"] and not export["is_read_only"] and
                       export["block_size_minimum"] == 512 and info["structured"], info)
                listed = json.loads(tool("nbdinfo", "--list", "--json",
                                         server.uri.replace("mine", "")))
                expect([e["export-name"] for e in listed["exports"]] == ["mine"], listed)
                tool("qemu-io", "-f", "raw", server.uri, *sum((["-c", c] for c in (
                    "write -P 7 1M 3M", "write -f -P 8 10M 64k", "read -P 7 1M 3M",
                    "read -P 0 0 1M", "write -z 2M 1M", "read -P 0 2M 1M", "discard 3M 1M",
                    "read -P 8 10M 64k", "flush")), []))
                extents = json.loads(tool("nbdinfo", "--map", "--json", server.uri))
                data = sum(e["length"] for e in extents if e["type"] == 0)
                expect(sum(e["length"] for e in extents) == SIZE and MIB <= data < 4 * MIB, extents)
                tool("qemu-io", "-f", "raw", server.uri.replace("mine", "other"), "-c", "read 0 512",
                     status=1)
                # The image is ours alone meanwhile, and others may look at the export.
                user.run("image", "resize", disk, "+1M", status=4)
                tool("nbdcopy", "--connections=4", server.uri, f"{user.home}/copy.raw")
            form = name.rsplit(".", maxsplit=1)[-1]
            tool("qemu-img", "compare", "-f", form, "-F", "raw", disk, f"{user.home}/copy.raw")
            os.unlink(f"{user.home}/copy.raw")


def copy_in(place):
    with User(place) as user:
        disk = make_disk(user)
        source = f"{user.home}/source.raw"
        noise = random.Random(5)
        with open(source, "wb") as file:
            file.truncate(SIZE)
            for _ in range(20):
                file.seek(noise.randrange(SIZE - MIB))
                file.write(noise.randbytes(noise.randrange(1, MIB)))
        os.chmod(source, 0o644)
        with Serving(user, disk) as server:
            tool("nbdcopy", "--connections=4", "--flush", source, server.uri)
            # Our own client of our own server; and killed: what was flushed is there.
            user.run("image", "compare", source, server.uri)
            mapped = json.loads(user.run("image", "map", server.uri, "--json")[0])
            expect(any(not e["data"] for e in mapped), mapped)
            server.process.kill()
        tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, disk)
        tool("qemu-img", "check", "-f", "qcow2", disk)
        # The socket that a killed server left is in nobody's way.
        with Serving(user, disk, "--read-only") as server:
            tool("qemu-io", "-f", "raw", server.uri, "-c", "write 0 512", status=1)
            tool("qemu-io", "-r", "-f", "raw", server.uri, "-c", "read 0 512")
            _, err = user.run("nbd", "serve", disk, "--socket", server.socket, "--read-only",
                              status=4)
            expect("there already" in err, err)
            user.run("nbd", "serve", disk, "--socket", f"{user.home}/t", status=4)
        user.run("nbd", "serve", disk, status=2)
        user.run("nbd", "serve", disk, "--socket", "/" + "x" * 200, status=1)


def open_session(peer, name=b"disk"):
    """Greets the old way, which needs one option: transmission begins."""
    greeting = peer.recv(18, socket.MSG_WAITALL)
    expect(greeting[:16] == b"NBDMAGICIHAVEOPT", greeting)
    peer.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
    answer = peer.recv(10, socket.MSG_WAITALL)
    expect(struct.unpack(">Q", answer[:8])[0] == SIZE, answer)


def request(command, offset, length, cookie=1, flags=0):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def answer_error(peer):
    answer = peer.recv(16, socket.MSG_WAITALL)
    return struct.unpack(">IIQ", answer)[1] if len(answer) == 16 else None


def survive_clients(place):
    with User(place) as user:
        disk = make_disk(user)
        with Serving(user, disk) as server:
            noise = random.Random(3)
            for number in range(60):
                with server.connect() as peer:
                    words = struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(
                        ">II", noise.randrange(1, 12), noise.choice([0, 4, 100, 1 << 20, 2**32 - 1]))
                    with contextlib.suppress(OSError):
                        peer.sendall((words if number % 2 else b"") + noise.randbytes(200))
                        peer.shutdown(socket.SHUT_WR)
                        while peer.recv(4096):
                            pass
            # One that asks for much and reads nothing is in nobody's way.
            slow = [server.connect() for _ in range(4)]
            for peer in slow:
                open_session(peer)
                peer.sendall(request(0, 0, 32 * MIB) * 4)
            half = server.connect()
            open_session(half)
            half.sendall(request(1, 0, MIB) + b"x" * 1000)  # the rest never comes
            with server.connect() as peer:
                open_session(peer)
                for words in (request(0, SIZE, 512), request(0, 2**64 - 512, 1024),
                              request(0, 1, 512), request(0, 0, 0), request(0, 0, 33 * MIB),
                              request(9, 0, 512), request(0, 0, 512, flags=0x8000),
                              request(7, 0, 512), request(4, SIZE - 512, 1024)):
                    peer.sendall(words)
                    expect(answer_error(peer) in (22, 28), "a bad request is answered with no error")
                peer.sendall(request(1, SIZE, 512) + b"y" * 512)
                expect(answer_error(peer) == 28, "a write beyond the end is answered with no error")
                peer.sendall(request(1, 4096, 512, flags=1) + b"z" * 512 + request(0, 4096, 512, 2))
                expect(answer_error(peer) == 0, "the write fails")
                expect(answer_error(peer) == 0 and peer.recv(512, socket.MSG_WAITALL) == b"z" * 512,
                       "the read brings something else")
                peer.sendall(request(1, 0, 2**32 - 1))  # nobody waits for so much
                expect(peer.recv(1) == b"", "an endless write is taken")
            for peer in (*slow, half):
                peer.close()
            tool("qemu-io", "-f", "raw", server.uri, "-c", "read -P 122 4096 512",
                 "-c", "read -P 0 0 4096")
        tool("qemu-img", "check", "-f", "qcow2", disk)


def kill(pid):
    """Returns when the process, perhaps no child of ours, has nothing open any more."""
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([watch], [], [])
    os.close(watch)


def use_other_servers(place):
    with User(place) as user:
        disk = make_disk(user, "disk.qcow2")
        raw = f"{user.home}/source.raw"
        pathlib.Path(raw).write_bytes(random.Random(9).randbytes(MIB) + bytes(SIZE - MIB))
        os.chmod(raw, 0o644)
        path = f"{user.home}/q"
        uri = f"nbd+unix:///disk?socket={path}"
        words = ["qemu-nbd", "--fork", "-t", "-e", "8", "-x", "disk", "-k", path,
                 f"--pid-file={user.home}/pid"]
        tool(*words, "-f", "raw", "-r", raw)
        os.chmod(path, 0o777)
        user.run("image", "convert", uri, disk, "--replace")
        tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, disk)
        info = json.loads(user.run("image", "info", uri, "--json")[0])
        expect(info["size_bytes"] == SIZE and info["format"] == "raw", info)
        user.run("image", "compare", uri, disk)
        _, err = user.run("image", "create", uri, "1M", "--replace", status=1)
        expect("server" in err, err)
        kill(int(pathlib.Path(user.home, "pid").read_text()))
        _, err = user.run("image", "info", uri, status=1)
        expect("refused" in err, err)


@contextlib.contextmanager
def nbdkit(user, *words):
    """A server that others wrote, with the given words; its address without an export."""
    path, pid = os.path.join(user.home, "k"), os.path.join(user.home, "k.pid")
    tool("nbdkit", "-U", path, "-P", pid, *words)
    os.chmod(path, 0o777)
    try:
        yield f"nbd+unix:///?socket={path}"
    finally:
        kill(int(pathlib.Path(pid).read_text()))
        os.unlink(path)


def own(user, path):
    if os.geteuid() == 0:
        os.chown(path, os.stat(user.home).st_uid, -1)
    return str(path)


def use_a_server_as_pool(place):
    with User(place) as user:
        store = pathlib.Path(user.home, "store")
        store.mkdir()
        content = random.Random(4).randbytes(MIB) + bytes(7 * MIB)
        (store / "one").write_bytes(content)
        (store / "a long way").write_bytes(bytes(16 * MIB))
        source = pathlib.Path(user.home, "source.raw")
        source.write_bytes(bytes(MIB) + random.Random(5).randbytes(3 * MIB))
        with nbdkit(user, "file", f"dir={store}") as server:
            _, err = user.run("pool", "create", "far", server.replace("///", "///one"), status=2)
            expect("without an export" in err, err)
            user.run("pool", "create", "far", server)
            pools = {p["name"]: p for p in json.loads(user.run("pool", "list", "--json")[0])}
            expect(pools["far"]["kind"] == "nbd" and pools["far"]["free_bytes"] == 0 and
                   pools["far"]["capacity_bytes"] == 24 * MIB, pools)
            rows = {r["name"]: r for r in
                    json.loads(user.run("pool-volume", "list", "--pool", "far", "--json")[0])}
            expect({n: r["size_bytes"] for n, r in rows.items()} ==
                   {"one": 8 * MIB, "a long way": 16 * MIB}, rows)
            expect(all(r["format"] == "raw" and not r["read_only"] for r in rows.values()), rows)
            # The file that show names is one for every other command.
            user.run("image", "compare", rows["one"]["path"], own(user, store / "one"),
                     "--other-format", "raw")
            copy = f"{user.home}/copy.qcow2"
            user.run("pool-volume", "copy-to", "one", copy, "--pool", "far")
            tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", store / "one", copy)
            user.run("pool-volume", "copy-to", "one", copy, "--pool", "far", status=4)
            own(user, source)
            user.run("pool-volume", "copy-from", "one", str(source), "--pool", "far", status=4)
            for name, size in (("one", 8 * MIB), ("a long way", 16 * MIB)):
                user.run("pool-volume", "copy-from", name, str(source), "--pool", "far", "--replace")
                expect((store / name).read_bytes() == source.read_bytes() + bytes(size - 4 * MIB),
                       f"{name} holds something else")
            user.run("image", "create", f"{user.home}/long.qcow2", "32M")
            _, err = user.run("pool-volume", "copy-from", "one", f"{user.home}/long.qcow2", "--pool",
                              "far", "--replace", status=1)
            expect(str(8 * MIB) in err, err)
            # What the server does not offer is refused by name.
            for words, what in ((("create", "new", "1M"), "making a volume"),
                                (("copy-from", "new", str(source)), "making a volume"),
                                (("resize", "one", "+1M"), "resizing"),
                                (("clone", "one", "new"), "making a volume"),
                                (("delete", "one"), "deleting"),
                                (("snapshot", "create", "one", "s"), "snapshots are"),
                                (("snapshot", "revert", "one", "s"), "snapshots are")):
                _, err = user.run("pool-volume", *words, "--pool", "far", status=1)
                expect(what in err and "nbd" in err, f"{words}: {err}")
            expect(json.loads(user.run("pool-volume", "snapshot", "list", "one", "--pool", "far",
                                       "--json")[0]) == [], "snapshots of a server's volume")
            user.run("pool-volume", "show", "none", "--pool", "far", status=3)
        # A server that is away hides no other pool.
        out, err = user.run("pool", "list")
        expect("default" in out and "far" not in out and "away" in err, f"{out}\n{err}")
        user.run("pool-volume", "list", "--pool", "far", status=3)
        with nbdkit(user, "-r", "file", f"dir={store}"):
            row = json.loads(user.run("pool-volume", "show", "one", "--pool", "far", "--json")[0])
            expect(row["read_only"], row)
            _, err = user.run("pool-volume", "copy-from", "one", str(source), "--pool", "far",
                              "--replace", status=1)
            expect("read" in err, err)
        # Our own server is one, too.
        disk = make_disk(user)
        with Serving(user, disk, "--name", "mine") as server:
            user.run("pool", "create", "own", server.uri.replace("mine", ""))
            rows = json.loads(user.run("pool-volume", "list", "--pool", "own", "--json")[0])
            expect([r["name"] for r in rows] == ["mine"], rows)
            user.run("pool-volume", "copy-from", "mine", str(source), "--pool", "own", "--replace")
        tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, disk)
        for name in ("far", "own"):
            user.run("pool", "remove", name)
        # The same commands in a directory, where a volume changes at once.
        user.run("pool-volume", "copy-from", "v", str(source))
        user.run("pool-volume", "snapshot", "create", "v", "before")
        user.run("pool-volume", "copy-from", "v", copy, status=4)
        user.run("pool-volume", "resize", "v", "8M")
        user.run("pool-volume", "copy-from", "v", copy, "--replace")
        user.run("pool-volume", "copy-to", "v", f"{user.home}/v.raw")
        expect(pathlib.Path(user.home, "v.raw").read_bytes() == content, "v holds something else")
        user.run("pool-volume", "snapshot", "revert", "v", "before")
        user.run("pool-volume", "copy-to", "v", f"{user.home}/v.raw", "--replace")
        expect(pathlib.Path(user.home, "v.raw").read_bytes() == source.read_bytes(),
               "the snapshot has changed")


def list_oddly(peer, names, then_leaves):
    """A server's side of a look: it lists the names and knows a length for all of them."""
    def answer(option, kind, data=b""):
        peer.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data)) + data)

    with contextlib.suppress(OSError):
        peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        peer.recv(4, socket.MSG_WAITALL)
        while len(head := peer.recv(16, socket.MSG_WAITALL)) == 16:
            option, length = struct.unpack(">8xII", head)
            peer.recv(length, socket.MSG_WAITALL)
            if option == 3:
                for name in names:
                    answer(3, 2, struct.pack(">I", len(name)) + name)
                if then_leaves:
                    break
                answer(3, 1)
            elif option == 6:
                answer(6, 3, struct.pack(">HQH", 0, MIB, 1))
                answer(6, 1)
            else:
                answer(option, 0x80000001)
    peer.close()


def survive_odd_servers(place):
    with User(place) as user, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(user.home, "odd")
        listener.bind(path)
        listener.listen()
        os.chmod(path, 0o777)

        def look(names, *words, status=0, then_leaves=False):
            command = user.start(*words)
            peer, _ = listener.accept()
            list_oddly(peer, names, then_leaves)
            out, err = command.communicate(timeout=LIMIT_S)
            expect(command.returncode == status, f"status {command.returncode}: {out}{err}")
            return out, err

        look([b"fine"], "pool", "create", "odd", f"nbd+unix:///?socket={path}")
        names = [b"fine", b"x" * 48, b"x" * 4096, b"esc\x1b[2J", b"../../etc/passwd", b"a?b#c%41", b""]
        out, err = look(names, "pool-volume", "list", "--pool", "odd", "--json")
        rows = {r["name"]: r["path"] for r in json.loads(out)}
        expect(set(rows) == {"fine", "../../etc/passwd", "a?b#c%41", "default"}, rows)
        expect(rows["a?b#c%41"] == f"nbd+unix:///a%3Fb%23c%2541?socket={path}", rows)
        expect("3 exports" in err and "\x1b" not in err, err)
        out, _ = look([b"n%d" % i for i in range(3000)], "pool-volume", "list", "--pool", "odd", "--json")
        expect(len(json.loads(out)) == 1024, "more than is kept")
        out, _ = look([b"", b"default", b"default"], "pool-volume", "list", "--pool", "odd", "--json")
        expect(len(json.loads(out)) == 1, out)
        look([b"fine"], "pool-volume", "list", "--pool", "odd", status=1, then_leaves=True)


def keep_qcow2_on_exports(place):
    """An image inside an export, which has an end that does not move."""
    with User(place) as user:
        image = f"{user.home}/image.raw"
        user.run("image", "create", f"{user.home}/inner.qcow2", "64M")
        pathlib.Path(image).write_bytes(pathlib.Path(user.home, "inner.qcow2").read_bytes())
        os.truncate(image, 8 * MIB)
        own(user, image)
        with nbdkit(user, "file", image) as address:
            form = ("--format", "qcow2")
            info = json.loads(user.run("image", "info", address, *form, "--json")[0])
            expect(info["format"] == "qcow2" and info["size_bytes"] == 64 * MIB, info)
            with Serving(user, address, *form) as disk:
                tool("qemu-io", "-f", "raw", disk.uri, "-c", "write -P 9 30M 3M", "-c", "flush",
                     "-c", "read -P 9 30M 3M", "-c", "read -P 0 0 1M")
                # More than the export has room for: an error, and nothing else is harmed.
                tool("qemu-io", "-f", "raw", disk.uri, "-c", "write -P 7 40M 16M", status=1)
                tool("qemu-io", "-f", "raw", disk.uri, "-c", "read -P 9 30M 3M", "-c",
                     "discard 30M 1M", "-c", "flush", "-c", "read -P 9 31M 2M")
            user.run("image", "check", address, *form)
            user.run("image", "snapshot", "create", address, "s", *form)
            rows = json.loads(user.run("image", "snapshot", "list", address, *form, "--json")[0])
            expect([r["name"] for r in rows] == ["s"], rows)
            user.run("image", "snapshot", "delete", address, "s", *form)
            _, err = user.run("image", "resize", address, "16M", status=1)
            expect("server" in err, err)
            user.run("image", "convert", address, f"{user.home}/flat.raw", *form)
        tool("qemu-img", "check", "-f", "qcow2", image)
        tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, f"{user.home}/flat.raw")


def run_a_machine(place):
    """A machine with a volume of a server's and with a qcow2 image on an export."""
    with User(place) as user:
        store = pathlib.Path(user.home, "store")
        store.mkdir()
        noise = random.Random(6).randbytes(4 * MIB)
        (store / "plain").write_bytes(noise)
        user.run("image", "create", f"{user.home}/i.qcow2", "64M")
        (store / "inner").write_bytes(pathlib.Path(user.home, "i.qcow2").read_bytes())
        os.truncate(store / "inner", 16 * MIB)
        image = guest("busybox")
        with nbdkit(user, "file", f"dir={store}") as server:
            user.run("pool", "create", "far", server)
            plain, inner = (json.loads(user.run("pool-volume", "show", name, "--pool", "far",
                                                "--json")[0])["path"] for name in ("plain", "inner"))
            with Machine(place, ["--engine", ENGINE, "--memory", "128M", "--kernel", image.kernel,
                                 "--initrd", image.initrd, "--cmdline", "console=ttyS0",
                                 "--control", place.home / "control", "--disk", f"{plain},id=plain",
                                 "--disk", f"{inner},format=qcow2,id=inner"]) as m:
                m.wait_text("/ #", m.wait_text("corbel-busybox: ready"))
                sums = m.run("dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum")
                expect(hashlib.sha256(noise).hexdigest() in sums, "the volume reads wrong")
                m.run("echo far away | dd of=/dev/vda bs=512 seek=100 conv=sync,fsync")
                m.run("dd if=/dev/vda of=/dev/vdb bs=64k seek=200 conv=fsync")
                with Control(place.home / "control") as control:
                    answer = control.ask("disk-resize", disk="plain", bytes=8 * MIB)
                    expect(not answer["ok"] and "server" in answer["error"], f"{answer}")
                m.type("poweroff -f\n")
                expect(m.wait_exit() == 0, m.story())
        data = (store / "plain").read_bytes()
        expect(data[51200:51208] == b"far away", "what was written is not on the server")
        tool("qemu-img", "check", "-f", "qcow2", store / "inner")
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", store / "inner", f"{user.home}/out")
        expect(pathlib.Path(user.home, "out").read_bytes()[200 * 65536:][:4 * MIB] == data,
               "the image on the export holds something else")


TESTS = [
    ("clients of others use every command", use_every_command),
    ("a disk is copied in, and a killed server lost nothing", copy_in),
    ("clients that misbehave harm nobody", survive_clients),
    ("a server is a pool of volumes", use_a_server_as_pool),
    ("a server's list is not trusted", survive_odd_servers),
    ("a qcow2 image lives on an export", keep_qcow2_on_exports),
    ("a machine's disks are on a server", run_a_machine),
    ("disks on other people's servers are read", use_other_servers),
]

if __name__ == "__main__":
    run_tests(TESTS)
