#!/usr/bin/python3
"""Machines on a bridge of the host's: real taps and a real bridge, in a network namespace of the
test's own, with a DHCP server and the host's own end of it.

usage: test_network.py [WORD...]     only the tests whose names hold a word
"""

import contextlib
import fcntl
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import urllib.request

from harness import ORDINARY_UID, Control, Machine, expect, guest, run_tests

ENGINE = os.environ.get("CORBEL_ENGINE", "soft")
BRIDGE = "br0"
HOST = "10.9.0.1"
MTU = 1400
INSIDE = "CORBEL_TEST_NETWORK_INSIDE"
MIB = 1 << 20
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 1, 2, 0x1000, 0x4000


def skip(why):
    print(f"1..0 # SKIP {why}")
    sys.exit(0)


def enter():
    """Begins anew in a network namespace of its own, where we may make what we like."""
    if os.environ.get(INSIDE):
        return
    for program in ("ip", "busybox", "unshare", "setpriv"):
        if shutil.which(program) is None:
            skip(f"there is no {program}")
    words = ["unshare", "--net"]
    if os.geteuid() != 0:
        words += ["--user", "--map-current-user", "--keep-caps"]
    if subprocess.run([*words, "true"], check=False, stderr=subprocess.DEVNULL).returncode != 0:
        skip("network namespaces cannot be made here")
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        skip(f"/dev/net/tun cannot be opened: {error.strerror}")
    if subprocess.run([*words, "ip", "link", "add", BRIDGE, "type", "bridge"], check=False,
                      stderr=subprocess.DEVNULL).returncode != 0:
        skip("the kernel has no bridges")
    os.execvpe(words[0], [*words, sys.executable, *sys.argv], {**os.environ, INSIDE: "yes"})


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def links():
    """Network devices by their names."""
    out = subprocess.run(["ip", "-json", "-details", "link"], check=True, stdout=subprocess.PIPE).stdout
    return {link["ifname"]: link for link in json.loads(out)}


def taps():
    return {name for name, link in links().items() if link.get("linkinfo", {}).get("info_kind") == "tun"}


@contextlib.contextmanager
def dhcp_server(place, leases):
    """Gives these addresses to these cards, and to nobody else."""
    config = place.path / "udhcpd.conf"
    lines = [f"interface {BRIDGE}", "start 10.9.0.200", "end 10.9.0.200", "max_leases 1",
             f"lease_file {place.path}/leases", f"pidfile {place.path}/udhcpd.pid",
             "opt subnet 255.255.255.0"]
    lines += [f"static_lease {mac} {address}" for mac, address in leases.items()]
    config.write_text("\n".join(lines) + "\n")
    (place.path / "leases").touch()
    server = subprocess.Popen(["busybox", "udhcpd", "-f", config], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def web_server(body):
    """On the host's end of the bridge: its port."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *unused):
            pass

    server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def privileged(place):
    """The ordinary user has CAP_NET_ADMIN and nothing else."""
    def wrap(command, container=False):
        expect(not container, "there is no such filter")
        words = ["setpriv", "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin",
                 "--bounding-set=-all,+net_admin"]
        if os.geteuid() == 0:
            words += ["--reuid", str(ORDINARY_UID), "--clear-groups"]
        return words + [str(word) for word in command]

    place.wrap = wrap
    try:
        yield
    finally:
        del place.wrap


def start(place, net, *more):
    image = guest("busybox")
    return Machine(place, ["--engine", ENGINE, "--memory", "128M", "--kernel", image.kernel,
                           "--initrd", image.initrd, "--cmdline", "console=ttyS0", "--net", net,
                           *more])


def ready(m):
    m.wait_text("/ #", m.wait_text("corbel-busybox: ready"))


def power_off(m):
    m.type("poweroff -f\n")
    expect(m.wait_exit() == 0, f"powering off gives a non-zero status\n{m.story()}")


def expect_no_privilege(pid):
    """Neither the monitor nor the processes that run guest code could change the host's network."""
    found = [pid]
    for one in found:
        for task in pathlib.Path(f"/proc/{one}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
            for line in (task / "status").read_text().splitlines():
                if line.startswith("Cap") and not line.startswith("CapBnd"):
                    expect(not int(line.split()[1], 16) >> 12 & 1, f"process {one}: {line}")
    expect(len(found) > 1, "no process runs guest code")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


FIRST, SECOND = "52:54:00:00:09:0a", "52:54:00:00:09:0b"


def talk(place):
    """Two guests on one bridge, and the host's own end of it."""
    body = os.urandom(4 * MIB)
    control = place.home / "first.sock"
    with privileged(place), dhcp_server(place, {FIRST: "10.9.0.10", SECOND: "10.9.0.11"}), \
            web_server(body) as port, \
            start(place, f"bridge,bridge={BRIDGE},guard,mac={FIRST}", "--control", control) as first, \
            start(place, f"bridge,bridge={BRIDGE},mac={SECOND}") as second:
        for m, address, mac in ((first, "10.9.0.10", FIRST), (second, "10.9.0.11", SECOND)):
            ready(m)
            out = m.run("ip addr show eth0")
            expect(mac in out and f"{address}/24" in out and f"mtu {MTU}" in out, out)
            expect_no_privilege(m.process.pid)
            expect(sha256(body) in m.run(f"wget -q -O - http://{HOST}:{port}/ | sha256sum"),
                   "a file changed on its way from the host")
        expect(len(taps()) == 2 and all(links()[tap]["master"] == BRIDGE for tap in taps()), f"{links()}")
        first.run("dd if=/dev/urandom of=/tmp/file bs=1M count=2 2>/dev/null; httpd -h /tmp")
        own = re.search("[0-9a-f]{64}", first.run("sha256sum /tmp/file")).group()
        out = second.run("ping -c 2 10.9.0.10; wget -q -O - http://10.9.0.10/file | sha256sum")
        expect("2 packets received" in out and own in out, f"{own}: {out}")
        with urllib.request.urlopen("http://10.9.0.10/file", timeout=600) as answer:
            expect(sha256(answer.read()) == own, "a file changed on its way to the host")
        with Control(control) as monitor:
            expect(monitor.expect_ok("status")["address"] == "10.9.0.10", "another address")
            counted = monitor.expect_ok("statistics")["statistics"]
            expect(counted["net.rx_bytes"] > 4 * MIB and counted["net.tx_bytes"] > 4 * MIB, f"{counted}")
            # Under another's address a guarded card says nothing, and hears nothing of the other's.
            first.run(f"ip link set eth0 down; ip link set eth0 address {SECOND}; ip link set eth0 up")
            first.run(f"! ping -c 1 -W 1 {HOST}")
            dropped = monitor.expect_ok("statistics")["statistics"]["net.tx_dropped"]
            expect(dropped > counted["net.tx_dropped"], f"{dropped} frames dropped")
        second.run(f"ip link set eth0 down; ip link set eth0 address {FIRST}; ip link set eth0 up; "
                   f"ping -c 1 {HOST}")
        power_off(first)
        second.process.kill()
        second.wait_exit()
    expect(not taps(), f"{taps()} are left")


def keep_limits(place):
    """Frames of a bridged card wait for its limits as those of another; the host takes its tap away."""
    body = os.urandom(MIB)
    control = place.home / "limits.sock"
    with privileged(place), dhcp_server(place, {FIRST: "10.9.0.10"}), web_server(body) as port, \
            start(place, f"bridge,bridge={BRIDGE},mac={FIRST},bps=512K", "--control", control) as m:
        ready(m)
        began = time.monotonic()
        expect(sha256(body) in m.run(f"wget -q -O - http://{HOST}:{port}/ | sha256sum"), "other bytes")
        # A tenth of a second's worth may pass at once, and the last frame at any time.
        took = time.monotonic() - began
        expect(took > 1.8, f"2 s worth of frames took {took:.2f} s")
        with Control(control) as monitor:
            counted = monitor.expect_ok("statistics")["statistics"]
            expect(counted["net.rx_throttled"] > 0, f"{counted}")
            tap, = taps()
            ip("link", "del", tap)
            m.run(f"! ping -c 1 -W 1 {HOST}")
            more = monitor.expect_ok("statistics")["statistics"]
            expect(more["net.tx_dropped"] > counted["net.tx_dropped"], f"{more}")
        power_off(m)
        expect(b"the network card's tap has gone" in m.stderr, m.story())


def use_own_tap(place):
    """A tap that belongs to a user needs no privilege, and stays."""
    owner = ORDINARY_UID if os.geteuid() == 0 else os.geteuid()
    ip("tuntap", "add", "dev", "mine", "mode", "tap", "user", str(owner), "vnet_hdr")
    try:
        ip("link", "set", "mine", "master", BRIDGE, "up")
        with dhcp_server(place, {FIRST: "10.9.0.10"}), start(place, f"tap,ifname=mine,mac={FIRST}") as m:
            ready(m)
            m.run(f"ping -c 1 {HOST}")
            refuse(place, "tap,ifname=mine", "in use by another process")
            power_off(m)
        expect("mine" in links(), "the tap is gone")
    finally:
        ip("link", "del", "mine")


def refuse(place, net, *words, status=1, **more):
    image = guest("busybox")
    done = subprocess.run(place.wrap([place.vmm, "--kernel", image.kernel, "--net", net]), check=False,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=600, **more)
    expect(done.returncode == status and done.stderr.count("\n") == 1 and "--net" in done.stderr and
           all(word in done.stderr for word in words), f"{net}: {done.returncode} {done.stderr}")


def open_tap(flags):
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"given", flags))
    return tap


def refuse_with_the_mend(place):
    bridge = f"bridge,bridge={BRIDGE}"
    refuse(place, bridge, "CAP_NET_ADMIN", "ip tuntap add dev tap0 mode tap user", f"master {BRIDGE} up")
    refuse(place, "bridge,bridge=br9", '"br9"', "ip link add br9 type bridge")
    refuse(place, "bridge,bridge=lo", '"lo"', "no bridge")
    refuse(place, "bridge,bridge=abcdefghijklmnop", "1 to 15", status=2)
    refuse(place, "tap,ifname=tap9", '"tap9"', "ip tuntap add dev tap9 mode tap user")
    refuse(place, f"tap,ifname={BRIDGE}", "no tap")
    if os.geteuid() == 0:  # or there is nobody else in our namespace
        ip("tuntap", "add", "dev", "other", "mode", "tap", "user", "0")
        refuse(place, "tap,ifname=other", "not this user's", "user NAME")
        ip("link", "del", "other")
    refuse(place, "tap,fd=77", "descriptor 77 is not open")
    with open("/dev/null", "rb") as file:
        refuse(place, f"tap,fd={file.fileno()}", "no tap", pass_fds=[file.fileno()])
    for flags in (IFF_TUN | IFF_NO_PI, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR):
        tap = open_tap(flags)
        refuse(place, f"tap,fd={tap}", "no tap", "IFF_TAP | IFF_NO_PI", pass_fds=[tap])
        os.close(tap)
    with privileged(place):
        # Where a device of that name would be made for who may, it is refused too.
        refuse(place, "tap,ifname=tap9", '"tap9"')
    expect(not taps(), f"{taps()} are left")


def main():
    enter()
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "mtu", str(MTU), "type", "bridge")
    ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    run_tests([("two guests and the host talk on a bridge", talk),
               ("limits hold and a tap may vanish", keep_limits),
               ("a user's own tap", use_own_tap),
               ("what does not fit is refused with the mend", refuse_with_the_mend)])


main()
