#!/usr/bin/python3
"""Images from servers and from other products' files: a real HTTP server that misbehaves, real files
made by qemu-img, and files made to do harm."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import pathlib
import random
import resource
import signal
import struct
import subprocess
import tarfile
import tempfile
import threading

from harness import LIMIT_S, expect, guest, run_tests
from test_cli import User

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")
MIB = 1 << 20
DISK = random.Random(7).randbytes(3 << 20) + bytes(5 << 20) + random.Random(8).randbytes(1 << 20)


def checksum(data, kind="sha256"):
    return f"{kind}:{hashlib.new(kind, data).hexdigest()}"


class Server:
    """Serves DISK in ways that the path chooses, and remembers what it was asked for."""

    def __init__(self):
        self.asked = []  # (path, first byte)
        self.cuts = 0    # so many answers are still to be cut off
        self.gate = threading.Event()  # /gate waits for it in the middle
        self.reached = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):  # noqa: N802
                owner.answer(self)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def url(self, path):
        return f"http://127.0.0.1:{self.http.server_port}/{path}"

    def answer(self, request):
        path = request.path.lstrip("/")
        wanted = request.headers.get("Range", "bytes=0-")
        first = int(wanted.split("=")[1].split("-")[0])
        self.asked.append((path, first))
        body = DISK
        if path.startswith("redirect"):
            request.send_response(302)
            request.send_header("Location", self.url("plain.raw"))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if path.startswith("loop"):
            request.send_response(302)
            request.send_header("Location", self.url("loop.raw"))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if path.startswith("missing"):
            request.send_error(404)
            return
        if path.startswith("other"):
            body = DISK[:-1] + b"?"
        if path.startswith("sums"):
            body = (hashlib.sha512(DISK).hexdigest() + "  plain.raw\n").encode()
        ranged = "Range" in request.headers and not path.startswith("norange")
        if not ranged:
            first = 0
        if first >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if ranged else 200)
        if ranged:
            request.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - first))
        request.end_headers()
        body = body[first:]
        if self.cuts > 0:
            self.cuts -= 1
            with contextlib.suppress(OSError):
                request.wfile.write(body[:len(body) // 2])
            request.close_connection = True
            return
        if path.startswith("gate"):
            request.wfile.write(body[:1 << 20])
            request.wfile.flush()
            self.reached.set()
            self.gate.wait(LIMIT_S)
            body = body[1 << 20:]
        with contextlib.suppress(OSError):
            request.wfile.write(body)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()


def image_disk(user, name):
    return pathlib.Path(user.home, ".local/share/corbel/images", name, "disk.raw")


def downloads(user):
    path = pathlib.Path(user.home, "cache/corbel/downloads")
    return sorted(p.name for p in path.iterdir() if p.suffix != ".lock") if path.is_dir() else []


def expect_disk(user, name, data=DISK):
    expect(image_disk(user, name).read_bytes() == data, f"the disk of {name} is not what was served")


def fetch_plainly(place):
    with User(place) as user, Server() as server:
        user.run("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK))
        expect_disk(user, "plain")
        stat = image_disk(user, "plain").stat()
        expect(stat.st_blocks * 512 < 5 << 20, "zeroes take room on the host")
        user.run("image", "fetch", server.url("again.raw"), "--checksum", checksum(DISK, "sha512"),
                 "--name", "again")
        user.run("image", "fetch", server.url("cached.raw"), "--checksum", checksum(DISK))
        expect(all(path != "cached.raw" for path, _ in server.asked), "a cached file was fetched")
        _, err = user.run("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK),
                          status=4)
        expect("--replace" in err, err)
        user.run("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK), "--replace")
        names = [row["name"] for row in json.loads(user.run("image", "list", "--json")[0])]
        expect(names == ["again", "cached", "plain"], names)
        _, err = user.run("run", "plain", status=2)
        expect("kernel" in err, err)
        expect(downloads(user) != [], "nothing is cached")
        user.run("image", "prune", "--days", "1")
        expect(downloads(user) != [], "what was just used is gone")
        user.run("image", "prune")
        expect(downloads(user) == [], "prune leaves something")
        user.run("image", "remove", "plain")


def follow_redirects(place):
    with User(place) as user, Server() as server:
        user.run("image", "fetch", server.url("redirect.raw"), "--checksum", checksum(DISK))
        expect_disk(user, "redirect")
        _, err = user.run("image", "fetch", server.url("loop.raw"), "--checksum",
                          checksum(b"another"), status=1)
        expect("redirect" in err.lower(), err)


def use_catalogue(place):
    with User(place) as user, Server() as server:
        out, _ = user.run("image", "catalogue", "--json")
        expect("debian-12-cloud" in [row["name"] for row in json.loads(out)], out)
        config = pathlib.Path(user.home, ".config/corbel")
        config.mkdir(parents=True)
        entry = {"name": "mine", "description": "d", "format": "raw", "url": server.url("plain.raw"),
                 "checksum": checksum(DISK)}
        (config / "catalogue.json").write_text(json.dumps({"images": [entry]}))
        user.run("image", "fetch", "mine")
        expect_disk(user, "mine")
        _, err = user.run("image", "fetch", "nothing", status=3)
        expect("corbel image catalogue" in err, err)
        # A list of checksums that came over an open line vouches for nothing.
        del entry["checksum"]
        entry["checksums_url"] = server.url("sums")
        (config / "catalogue.json").write_text(json.dumps({"images": [entry]}))
        _, err = user.run("image", "fetch", "mine", "--replace", status=2)
        expect("https" in err, err)


def survive_cuts(place):
    with User(place) as user, Server() as server:
        server.cuts = 8
        user.run("image", "fetch", server.url("cut.raw"), "--checksum", checksum(DISK))
        expect_disk(user, "cut")
        firsts = [first for path, first in server.asked if path == "cut.raw"]
        expect(firsts == sorted(firsts) and len(set(firsts)) == 9, f"not resumed: {firsts}")
        server.cuts = 2
        user.run("image", "fetch", server.url("norange.raw"), "--checksum", checksum(DISK, "sha512"))
        expect_disk(user, "norange")


def refuse_wrong_files(place):
    with User(place) as user, Server() as server:
        _, err = user.run("image", "fetch", server.url("plain.raw"), "--checksum",
                          checksum(b"something else"), status=1)
        expect("checksum" in err and checksum(DISK) in err, err)
        _, err = user.run("image", "fetch", server.url("missing.raw"), "--checksum", checksum(DISK),
                          status=3)
        expect("404" in err, err)
        _, err = user.run("image", "fetch", server.url("plain.raw"), status=2)
        expect("--insecure-no-checksum" in err, err)
        _, err = user.run("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK),
                          "--max-size", "1M", status=1)
        expect("limit" in err, err)
        _, err = user.run("image", "fetch", "http://127.0.0.1:1/x.raw", "--checksum", checksum(DISK),
                          status=1)
        expect("127.0.0.1" in err, err)
        _, err = user.run("image", "fetch", "file:///etc/passwd", "--format", "raw", status=3)
        expect(downloads(user) == [] and user.images() == [], "something was kept")
        # What an earlier fetch left of another file is thrown away, not trusted.
        cache = pathlib.Path(user.home, "cache/corbel/downloads")
        partial = cache / (checksum(DISK).replace(":", "-") + ".part")
        partial.write_bytes(b"rubbish" * 1000)
        if os.geteuid() == 0:
            os.chown(partial, cache.stat().st_uid, cache.stat().st_gid)
        user.run("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK))
        expect_disk(user, "plain")
        user.run("image", "fetch", server.url("other.raw"), "--insecure-no-checksum")
        expect_disk(user, "other", DISK[:-1] + b"?")


def go_on_after_kill(place):
    with User(place) as user, Server() as server:
        process = user.start("image", "fetch", server.url("gate.raw"), "--checksum", checksum(DISK))
        expect(server.reached.wait(LIMIT_S), "the server was never asked")
        partial = pathlib.Path(user.home, "cache/corbel/downloads",
                               checksum(DISK).replace(":", "-") + ".part")
        while not partial.exists() or partial.stat().st_size < 1 << 19:
            expect(process.poll() is None, "the fetch ended by itself")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.gate.set()
        size = partial.stat().st_size
        user.run("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK))
        expect_disk(user, "plain")
        expect(("plain.raw", size) in server.asked, f"not resumed at {size}: {server.asked}")


def fetch_once_for_two(place):
    with User(place) as user, Server() as server:
        both = [user.start("image", "fetch", server.url("gate.raw"), "--checksum", checksum(DISK),
                           "--name", name) for name in ("one", "two")]
        expect(server.reached.wait(LIMIT_S), "the server was never asked")
        server.gate.set()
        for process in both:
            out, err = process.communicate(timeout=LIMIT_S)
            expect(process.returncode == 0, out + err)
        expect_disk(user, "one")
        expect_disk(user, "two")
        expect(len(server.asked) == 1, f"fetched more than once: {server.asked}")


def run_out_of_room(place):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    with User(place) as user, Server() as server:
        process = user.start("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK),
                             preexec=limit)
        _, err = process.communicate(timeout=LIMIT_S)
        expect(process.returncode == 1 and "No space left" in err, err)
        user.run("image", "fetch", server.url("plain.raw"), "--checksum", checksum(DISK))
        expect_disk(user, "plain")
        expect(server.asked[-1][1] > 0, "what had come was not gone on with")


def give(user, path, data):
    """A file of the user's."""
    target = pathlib.Path(user.home, path)
    target.write_bytes(data)
    target.chmod(0o644)
    return str(target)


def make_disks(user):
    """DISK in every format, by qemu-img and the packers."""
    raw = give(user, "disk.raw", DISK)
    made = {"raw": raw}
    for suffix, words in (("qcow2", ["qcow2"]), ("vmdk", ["vmdk"]), ("vhdx", ["vhdx"]),
                          ("vdi", ["vdi"]), ("vhd", ["vpc", "-o", "force_size=on"])):
        made[suffix] = f"{user.home}/disk.{suffix}"
        subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", *words, raw, made[suffix]],
                       check=True)
    made["stream.vmdk"] = f"{user.home}/stream.vmdk"
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "vmdk", "-o",
                    "subformat=streamOptimized", raw, made["stream.vmdk"]], check=True)
    for suffix, program in (("raw.gz", "gzip"), ("raw.xz", "xz"), ("raw.zst", "zstd")):
        made[suffix] = f"{user.home}/disk.{suffix}"
        with open(made[suffix], "wb") as out:
            subprocess.run([program, "-q", "-c", raw], check=True, stdout=out)
    return made


def make_ova(user, vmdk, spoil=None, extra=()):
    """An OVA around a VMDK file, with a manifest."""
    target = f"{user.home}/machine.ova"
    disk = pathlib.Path(vmdk).read_bytes()
    ovf = b"<?xml version='1.0'?><Envelope/>"
    manifest = "".join(f"SHA256({name})= {hashlib.sha256(data).hexdigest()}\n"
                       for name, data in (("m.ovf", ovf), ("m.vmdk", disk)))
    if spoil:
        manifest = manifest.replace(manifest[-10:-1], spoil)
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (("m.ovf", ovf), ("m.mf", manifest.encode()), ("m.vmdk", disk), *extra):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    os.chmod(target, 0o644)
    return target


def import_all_formats(place):
    with User(place) as user:
        made = make_disks(user)
        made["ova"] = make_ova(user, made["stream.vmdk"])
        for number, (suffix, path) in enumerate(made.items()):
            os.chmod(path, 0o644)
            user.run("image", "import", path, "--name", f"i{number}", "--checksum",
                     checksum(pathlib.Path(path).read_bytes()))
            data = image_disk(user, f"i{number}").read_bytes()
            expect(data[:len(DISK)] == DISK and not any(data[len(DISK):]),
                   f"{suffix} was imported wrongly")
        _, err = user.run("image", "import", made["vdi"], "--name", "x", "--checksum",
                          checksum(b"else"), status=1)
        expect("checksum" in err, err)
        for suffix, driver in (("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhd", "vpc"),
                               ("vhdx", "vhdx"), ("vdi", "vdi"), ("raw", "raw")):
            target = f"{user.home}/out.{suffix}"
            user.run("image", "export", "i0", target)
            subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", driver, made["raw"], target],
                           check=True, stdout=subprocess.DEVNULL)
            _, err = user.run("image", "export", "i0", target, status=4)
            expect("already" in err, err)
        expect(not [n for n in os.listdir(user.home) if "making" in n], "an export left something")


def convert(raw, path, *words):
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", *words, raw, path], check=True)
    for part in pathlib.Path(path).parent.glob("*.v*"):
        part.chmod(0o644)
    return path


def import_all_subformats(place):
    """Every form that qemu-img writes; the disk is longer than the 2 GiB of a part."""
    with User(place) as user:
        raw = give(user, "long.raw", DISK)
        os.truncate(raw, (4 << 30) + 12345 * 512)
        with open(raw, "r+b") as file:
            for at in ((2 << 30) - 70000, (4 << 30) - 5 * 512, (4 << 30) + 12344 * 512):
                file.seek(at)
                file.write(DISK[1000:1512] * 9 if at < 4 << 30 else b"the last sector")
        os.truncate(raw, (4 << 30) + 12345 * 512)
        for number, (suffix, words) in enumerate((
                ("vmdk", ("vmdk", "-o", "subformat=monolithicSparse")),
                ("vmdk", ("vmdk", "-o", "subformat=streamOptimized")),
                ("vmdk", ("vmdk", "-o", "subformat=monolithicFlat")),
                ("vmdk", ("vmdk", "-o", "subformat=twoGbMaxExtentSparse")),
                ("vmdk", ("vmdk", "-o", "subformat=twoGbMaxExtentFlat")),
                ("vhd", ("vpc", "-o", "subformat=dynamic,force_size=on")),
                ("vhd", ("vpc", "-o", "subformat=fixed,force_size=on")),
                ("vhdx", ("vhdx", "-o", "subformat=dynamic")),
                ("vhdx", ("vhdx", "-o", "subformat=fixed")),
                ("vdi", ("vdi",)), ("vdi", ("vdi", "-o", "static=on")))):
            made = convert(raw, f"{user.home}/f{number}.{suffix}", *words)
            user.run("image", "import", made, "--name", "x")
            subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", raw,
                            image_disk(user, "x")], check=True)
            user.run("image", "remove", "x")
            for part in pathlib.Path(user.home).glob(f"f{number}*"):
                part.unlink()


def refuse_parts(place):
    """The text of a VMDK disk may name its own parts alone."""
    with User(place) as user:
        raw = give(user, "disk.raw", DISK)
        made = convert(raw, f"{user.home}/p.vmdk", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
        good = pathlib.Path(made).read_bytes().rstrip(b"\0").decode()
        name = '"p-s001.vmdk"'
        give(user, "q-s001.vmdk", b"somebody else's")
        os.mkdir(f"{user.home}/d")
        for wrong in ("/etc/passwd", "../p-s001.vmdk", "q-s001.vmdk", "d/p-s001.vmdk", "p.vmdk",
                      "p-s001.raw", "p-x/../../p-s.vmdk"):
            refuse(user, give(user, "p.vmdk", good.replace(name, f'"{wrong}"').encode()), "other files",
                   status=4)
        os.symlink("/etc/passwd", f"{user.home}/p-link.vmdk")
        refuse(user, give(user, "p.vmdk", good.replace(name, '"p-link.vmdk"').encode()), "read")
        refuse(user, give(user, "p.vmdk", good.replace(name, '"p-gone.vmdk"').encode()), "p-gone",
               status=3)
        alone = "parentCID=ffffffff"
        refuse(user, give(user, "p.vmdk", good.replace(alone, "parentCID=12345678").encode()),
               "stands on", status=4)
        for old, new, text in (("SPARSE", "SESPARSE", "kind"), ("SPARSE", "FLAT", "cut off"),
                               ("RW ", "RW 99999999999", "--max-size"), ("RW ", "RW -", "damaged"),
                               ("RW ", "RO ", "no parts"), ("RW ", "NOACCESS ", "not be read")):
            refuse(user, give(user, "p.vmdk", good.replace(old, new).encode()), text)
        give(user, "p.vmdk", good.encode())
        part = pathlib.Path(user.home, "p-s001.vmdk")
        whole = part.read_bytes()
        for at, value in ((0, b"XXXX"), (20, struct.pack("<Q", 3)), (44, struct.pack("<I", 9)),
                          (56, struct.pack("<Q", 1 << 60)), (8, struct.pack("<I", 1 << 16)),
                          (12, struct.pack("<Q", 1 << 50))):
            give(user, part.name, whole[:at] + value + whole[at + len(value):])
            refuse(user, made, "VMDK" if at != 56 else "p-s001")
        give(user, part.name, whole[:len(whole) // 2])
        refuse(user, made, "p-s001")
        give(user, part.name, whole)
        user.run("image", "import", made, "--name", "good")
        expect(image_disk(user, "good").read_bytes()[:len(DISK)] == DISK, "imported wrongly")


def import_part_of_a_file(place):
    """A part may begin anywhere in its file, and the file have holes anywhere."""
    with User(place) as user:
        part = bytes(512) + bytes(8 * 4096) + DISK[:4096] + bytes(16 * 4096)
        give(user, "holes-flat.vmdk", b"")
        with open(f"{user.home}/holes-flat.vmdk", "r+b") as file:
            os.truncate(file.fileno(), len(part))
            file.seek(512 + 8 * 4096)
            file.write(DISK[:4096])
        sectors = len(part) // 512 - 1
        text = (f"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
                f'RW {sectors} FLAT "holes-flat.vmdk" 1\n')
        user.run("image", "import", give(user, "holes.vmdk", text.encode()), "--name", "holes")
        expect(image_disk(user, "holes").read_bytes() == part[512:], "imported wrongly")


def refuse(user, path, text, *more, status=1):
    """The import fails with a sentence that holds the text, and leaves nothing."""
    os.chmod(path, 0o644)
    _, err = user.run("image", "import", path, "--name", "bad", *more, status=status)
    expect(text in err and len(err.splitlines()) == 1, f"{path}: {err}")
    expect(user.images() == [], f"{path} left {user.images()}")


def refuse_hostile_images(place):
    with User(place) as user:
        made = make_disks(user)
        secret = "/etc/passwd"
        base = f"{user.home}/base.qcow2"
        for words, status in ((["-b", secret, "-F", "raw"], 4),
                              (["-o", f"data_file={user.home}/data"], 1)):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, base, "1M"],
                           check=True, stdout=subprocess.DEVNULL)
            refuse(user, base, "file", status=status)
        # A raw disk whose guest wrote the header of an image that names a file of the host.
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", base,
                        "1M"], check=True)
        data = pathlib.Path(base).read_bytes()
        user.run("image", "import", give(user, "guest.raw", data), "--name", "guest")
        expect(image_disk(user, "guest").read_bytes()[:len(data)] == data, "a raw disk was read into")
        user.run("image", "remove", "guest")
        flat = (f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n'
                f'createType="monolithicFlat"\nRW 2 FLAT "{secret}" 0\n')
        refuse(user, give(user, "flat.vmdk", flat.encode().ljust(1024, b"\0")), "other files", status=4)
        # The sparse form with no length of its own, whose embedded text names a file of the host.
        header = struct.pack("<4sIIQQQQIQQQB", b"KDMV", 1, 3, 0, 128, 1, 20, 512, 0, 0, 21, 0)
        refuse(user, give(user, "sparse.vmdk", header.ljust(512, b"\0") + flat.encode().ljust(20 * 512, b"\0")),
               "other files", status=4)
        huge = bytearray(pathlib.Path(made["qcow2"]).read_bytes())
        huge[24:32] = struct.pack(">Q", (1 << 63) - 512)
        refuse(user, give(user, "huge.qcow2", bytes(huge)), "")
        for suffix in ("qcow2", "vmdk", "vhdx", "vdi", "vhd", "raw.gz", "raw.xz", "raw.zst"):
            cut = pathlib.Path(made[suffix]).read_bytes()
            refuse(user, give(user, f"cut.{suffix}", cut[:300]), "")
        refuse(user, give(user, "text.vdi", b"nothing of the kind" * 100), "")
        refuse(user, give(user, "x.bin", DISK), "--format", status=2)


def refuse_bombs(place):
    with User(place) as user:
        # Frames one after another are one file: 256 GiB in a few megabytes.
        frame = subprocess.run(["zstd", "-q", "-c"], input=bytes(1 << 30), check=True,
                               stdout=subprocess.PIPE).stdout
        bomb = give(user, "bomb.raw.zst", frame * 256)
        refuse(user, bomb, "longer than it may", "--max-size", "2T")
        refuse(user, bomb, "--max-size", "--max-size", "1G")
        big = f"{user.home}/big.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", big, "1T"], check=True)
        refuse(user, big, "--max-size")


def refuse_hostile_archives(place):
    with User(place) as user:
        vmdk = make_disks(user)["stream.vmdk"]
        refuse(user, make_ova(user, vmdk, spoil="000000000"), "manifest")
        for name in ("../escape", "/etc/passwd", "a/b", ".hidden"):
            refuse(user, make_ova(user, vmdk, extra=[(name, b"x")]), "name", status=4)
        refuse(user, make_ova(user, vmdk, extra=[("n.vmdk", b"x")]), "more than one")
        path = make_ova(user, vmdk)
        with tarfile.open(path, "a", format=tarfile.USTAR_FORMAT) as archive:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
        refuse(user, path, "plain file", status=4)
        data = bytearray(pathlib.Path(make_ova(user, vmdk)).read_bytes())
        data[124:136] = b"77777777777\0"
        data[148:156] = b"%06o\0 " % sum(data[:148] + b" " * 8 + data[156:512])
        refuse(user, give(user, "long.ova", bytes(data)), "cut off")
        refuse(user, give(user, "cut.ova", bytes(data[:700])), "")


GRUB = """set default=0
menuentry 'Linux' {
    insmod ext2
    linux {kernel} root=LABEL=top ro $vt_handoff quiet ${extra} {more}
    initrd {initrd}
}
menuentry 'older' { linux /boot/vmlinuz-0 root=none
    initrd /boot/initrd-0 }
"""


def make_tree(user, grub, top="boot"):
    """A directory as a root file system, or a file system for /boot, has it."""
    tree = pathlib.Path(tempfile.mkdtemp(dir=user.home))
    (tree / top / "grub").mkdir(parents=True)
    (tree / top / "grub" / "grub.cfg").write_text(grub)
    (tree / top / "vmlinuz-1").write_bytes(b"kernel" * 40000)
    (tree / top / "initrd.img-1").write_bytes(b"initrd" * 90000)
    return tree


def make_whole_disk(user, name, *trees, how=("-t", "ext4")):
    """An MBR with a file system for each tree, made as how says."""
    disk = bytearray(MIB)
    disk[510:512] = b"\x55\xaa"
    for number, tree in enumerate(trees):
        part = f"{user.home}/part"
        pathlib.Path(part).write_bytes(bytes(8 * MIB))
        subprocess.run(["/usr/sbin/mke2fs", "-q", *how, "-d", str(tree), part], check=True)
        disk[446 + 16 * number:462 + 16 * number] = struct.pack(
            "<IIII", 0, 0x83, len(disk) // 512, 8 * MIB // 512)
        disk += pathlib.Path(part).read_bytes()
        os.unlink(part)
    return give(user, name, bytes(disk))


def find_kernels(place):
    with User(place) as user:
        plain = GRUB.replace("{kernel}", "/boot/vmlinuz-1").replace("{initrd}", "/boot/initrd.img-1")
        apart = GRUB.replace("{kernel}", "/vmlinuz-1").replace("{initrd}", "/initrd.img-1")
        trees = {"whole": [make_tree(user, plain.replace("{more}", "console=ttyS0,9600"))],
                 "apart": [make_tree(user, "nothing here", "etc"),
                           make_tree(user, apart.replace("{more}", "x=1"), ".")]}
        for name, more in (("whole", "console=ttyS0,9600"), ("apart", "x=1 console=ttyS0")):
            _, err = user.run("image", "import", make_whole_disk(user, f"{name}.raw", *trees[name]))
            expect(err == "", err)
            place_of = image_disk(user, name).parent
            expect((place_of / "vmlinuz").read_bytes() == b"kernel" * 40000 and
                   (place_of / "initrd").read_bytes() == b"initrd" * 90000, f"{name}: other files")
            about = json.loads((place_of / "image.json").read_text())
            expect(about["cmdline"] == f"root=LABEL=top ro quiet {more}", about)
        # Block maps of every depth, and directories with an index.
        for name, how in (("ext2", ["-t", "ext2", "-b", "1024"]), ("ext3", ["-t", "ext3", "-b", "2048", "-I", "128"]),
                          ("ext4", ["-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum"]),
                          ("tree", ["-t", "ext4", "-b", "1024", "-O", "^64bit,^flex_bg"]), ("rev0", ["-r", "0", "-b", "1024"])):
            tree = make_tree(user, plain.replace("{more}", ""))
            for number in range(400):
                (tree / "boot" / f"a-file-with-a-long-name-{number:060}").write_text("")
            with open(tree / "boot/vmlinuz-1", "wb") as kernel:  # with holes, so with many extents
                for number in range(40):
                    kernel.seek(number * 32768)
                    kernel.write(b"kernel" * 1000)
                kernel.seek(3 * MIB)
                kernel.write(b"end")
            _, err = user.run("image", "import", make_whole_disk(user, f"{name}.raw", tree, how=how))
            expect(err == "", f"{name}: {err}")
            place_of = image_disk(user, name).parent
            for file in ("vmlinuz", "initrd"):
                source = next((tree / "boot").glob(f"{file}*-1"))
                expect((place_of / file).read_bytes() == source.read_bytes(), f"{name}: {file} is another file")
        # What cannot be had is said, and the disk comes in all the same.
        config = plain.replace("{more}", "")
        for number, (grub, text) in enumerate((
                (config.replace("vmlinuz-1", "vmlinuz-2"), "vmlinuz-2"),
                (config.replace("/boot/vmlinuz-1", "/boot/vmlinuz-1;rm"), "no Linux"),
                (config.replace("/boot/vmlinuz-1", "vmlinuz-1"), "no Linux"),
                (config.replace("root=LABEL=top", "root=" + "x" * 9000), "no Linux"),
                ("linux", "no Linux"), ("\0" * 70000, "no GRUB"))):
            tree = make_tree(user, grub)
            os.unlink(tree / "boot/grub/grub.cfg")
            (tree / "boot/grub/grub.cfg").write_text(grub.replace("linux /boot/vmlinuz-0", "nothing"))
            _, err = user.run("image", "import", make_whole_disk(user, f"bad{number}.raw", tree))
            expect("no kernel was found" in err and text in err, f"{number}: {err}")
            expect(not (image_disk(user, f"bad{number}").parent / "vmlinuz").exists(), "a kernel")
            _, err = user.run("run", f"bad{number}", status=2)
            expect("no kernel" in err, err)
        good = pathlib.Path(user.home, "whole.raw").read_bytes()
        noise = random.Random(12)
        for number in range(8):
            data = bytearray(good)
            for _ in range(40):  # the tables of the file system, whose magic stays
                at = MIB + noise.choice((1024, 4096, 8192, 64 * 1024)) + noise.randrange(1024)
                if not 1024 + 56 <= at - MIB < 1024 + 58:
                    data[at] = noise.randrange(256)
            user.run("image", "import", give(user, "broken.raw", bytes(data)), "--replace")


def boot_from_elsewhere(place):
    """A disk that came alone starts with the kernel that is on it."""
    with User(place) as user:
        source = f"{user.home}/source.raw"
        subprocess.run(["cp", "--sparse=always", guest("debian").disk, source], check=True)
        os.chmod(source, 0o644)
        user.run("image", "import", source, "--name", "cloud")
        os.unlink(source)
        user.run("run", "cloud", "--detach", "--wait", "--engine", ENGINE)
        user.run("stop", "cloud")


TESTS = [
    ("a disk is fetched once, cached, listed and pruned", fetch_plainly),
    ("redirects are followed, but not for ever", follow_redirects),
    ("the catalogue names images, the user's own too", use_catalogue),
    ("a fetch goes on after cut connections, with ranges and without", survive_cuts),
    ("what the checksum denies is refused and not kept", refuse_wrong_files),
    ("a fetch that was killed goes on where it was", go_on_after_kill),
    ("two fetches of one file are one", fetch_once_for_two),
    ("a full disk is an error, and no loss", run_out_of_room),
    ("disks of every format come in, and go out", import_all_formats),
    ("disks of every subformat come in", import_all_subformats),
    ("a disk in parts has its own parts and no others", refuse_parts),
    ("a part begins anywhere in a file with holes", import_part_of_a_file),
    ("images that name other files, lie or are cut off are refused", refuse_hostile_images),
    ("disks longer than allowed are refused, however well packed", refuse_bombs),
    ("archives with tricks in them are refused", refuse_hostile_archives),
    ("the kernel on a whole disk is found", find_kernels),
    ("a whole disk from elsewhere boots", boot_from_elsewhere),
]

if __name__ == "__main__":
    run_tests(TESTS)
