#!/usr/bin/python3
"""A hostile or clumsy debugger: the stub answers or drops, and the machine lives.

usage: test_gdb_peer.py VMM GUEST
"""

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading


def packet(text):
    body = text.encode("latin-1")
    return b"$" + body + b"#%02x" % (sum(body) & 0xff)


def connect(path):
    """The socket's name exists a moment before it listens."""
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            return sock
        except (ConnectionRefusedError, FileNotFoundError):
            sock.close()


class Peer:
    def __init__(self, path):
        self.sock = connect(path)
        self.sock.settimeout(60)
        self.buffer = b""

    def send(self, data):
        self.sock.sendall(data)

    def answer(self):
        """The next packet's body."""
        while True:
            match = re.search(rb"\$([^#]*)#([0-9a-f]{2})", self.buffer)
            if match:
                self.buffer = self.buffer[match.end():]
                return match.group(1).decode("latin-1")
            chunk = self.sock.recv(65536)
            if not chunk:
                raise AssertionError("the stub closed the connection")
            self.buffer += chunk

    def drain(self):
        while self.sock.recv(65536):
            pass

    def ask(self, text):
        self.send(packet(text))
        return self.answer()


def check(what, good):
    print(("ok" if good else "not ok") + " - " + what, flush=True)
    if not good:
        sys.exit(1)


def bad_requests(peer):
    peer.send(b"$g#00")
    while b"-" not in peer.buffer:
        peer.buffer += peer.sock.recv(1)
    peer.buffer = b""
    check("a wrong checksum is asked again", True)
    check("a packet too long is refused", peer.ask("m" + "0" * 100000) == "E07")
    for text in ("m", "m,", "m0", "mzz,1", "m0,", "M0,4:00", "M0,ffffffff:00", "p", "pffff", "P0",
                 "P0=", "P0=12", "Hx1", "Hg99", "Tffff", "vCont;x", "vCont;", "G", "Z0,", "Z0,zz",
                 "vCont;s:ffffffffffffffffff", "qThreadExtraInfo,9999",
                 "qXfer:features:read:target.xml:", "qXfer:features:read:target.xml:fffff,1"):
        answer = peer.ask(text)
        if not (answer == "" or answer.startswith("E") or (text in ("G", "vCont;"))):
            check(f"{text!r} is an error, not {answer!r}", False)
    check("malformed requests are errors", True)
    check("an address outside RAM is an error", peer.ask("mc8000000,8").startswith("E"))
    length = len(peer.ask("m100000,ffffffff"))
    check("a long read is cut", 0 < length <= 4096)
    check("watchpoints are not promised", peer.ask("Z2,1000,4") == "")


def breakpoints(peer):
    answers = [peer.ask(f"Z1,{0x200000 + 16 * i:x},1") for i in range(65)]
    check("64 breakpoints fit", answers[:64] == ["OK"] * 64)
    check("and no more", answers[64].startswith("E"))
    answers = [peer.ask(f"z1,{0x200000 + 16 * i:x},1") for i in range(64)]
    check("they go again", answers == ["OK"] * 64)


def main():
    vmm, guest = sys.argv[1:3]
    with tempfile.TemporaryDirectory(prefix="corbel-gdb-") as directory:
        path = os.path.join(directory, "gdb")
        reader, writer = os.pipe()
        with subprocess.Popen([vmm, "--engine", "soft", "--memory", "64M", "--kernel", guest,
                               "--no-rng", "--no-balloon", "--serial", "none", "--gdb",
                               "unix:" + path, "--gdb-wait", "--on-crash", "restart", "--ready-fd", str(writer)],
                              stdin=subprocess.DEVNULL, pass_fds=[writer]) as process:
            os.close(writer)
            with open(reader, encoding="ascii") as ready:
                check("the monitor runs", ready.read() == "ready\n")
            peer = Peer(path)
            bad_requests(peer)
            breakpoints(peer)

            second = socket.socket(socket.AF_UNIX)
            second.connect(path)
            check("a second debugger is turned away", second.recv(1) == b"")
            peer.send(packet("g") * 5000)
            answers = [peer.answer() for _ in range(5000)]
            check("requests in advance are all answered", len(set(answers)) == 1)

            seed = random.randrange(1 << 32)
            print(f"# seed {seed}")
            noise = random.Random(seed)
            # Who does not read answers is not listened to: read them all.
            reader = threading.Thread(target=peer.drain)
            reader.start()
            for _ in range(300):
                peer.send(bytes(noise.choice(b"$#+-mMgGpPZzqvcHT,:;=0123456789abcdef\x04\xff}*")
                                for _ in range(noise.randrange(400))))
                # What the noise asked for may have resumed the guest: stop it again.
                peer.send(b"#00#00\x03")
            peer.sock.shutdown(socket.SHUT_WR)
            reader.join()
            peer.sock.close()

            peer = Peer(path)
            check("after noise it still answers", peer.ask("qC").startswith("QC"))
            peer.send(packet("k"))
            check("kill ends the machine", process.wait(60) == 0)


main()
