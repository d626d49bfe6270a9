#!/usr/bin/python3
"""Machines on a bridge of the host's: real taps and a real bridge, in a network namespace of the
test's own, with a DHCP server and the host's own end of it.

usage: test_network.py [WORD...]     only the tests whose names hold a word
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request

from harness import ORDINARY_UID, Control, Machine, expect, guest, run_tests, web_server
from platform_rig import Platform

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


def enter(*guests):
    """Begins anew in a network namespace of its own, where we may make what we like. The guests that
    are needed are built before: inside there is nowhere to get anything from."""
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
    if os.geteuid() == 0 and subprocess.run(["setpriv", "--reuid", str(ORDINARY_UID), "--clear-groups", "sh", "-c", "exec <>/dev/net/tun"],
                                            check=False, stderr=subprocess.DEVNULL).returncode != 0:
        skip("/dev/net/tun cannot be opened by an ordinary user")
    for what, request in (("bridges", ["link", "add", BRIDGE, "type", "bridge"]),
                          ("taps", ["tuntap", "add", "dev", "tap0", "mode", "tap"])):
        if subprocess.run([*words, "ip", *request], check=False, stderr=subprocess.DEVNULL).returncode != 0:
            skip(f"the kernel has no {what}")
    for kind in guests:
        subprocess.run([sys.executable, "-c", f"import harness; harness.guest({kind!r})"], check=True,
                       env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)})
    os.execvpe(words[0], [*words, sys.executable, *sys.argv], {**os.environ, INSIDE: "yes"})


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def links():
    """Network devices by their names."""
    out = subprocess.run(["ip", "-json", "-details", "link"], check=True, stdout=subprocess.PIPE).stdout
    return {link["ifname"]: link for link in json.loads(out)}


def addresses(device):
    """Those that the host has there; none of IPv6 where that is off for all."""
    out = subprocess.run(["ip", "-json", "address", "show", "dev", device], check=True, stdout=subprocess.PIPE).stdout
    return [one["local"] for link in json.loads(out) for one in link.get("addr_info", [])]


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


def status_of(pid):
    return pathlib.Path(f"/proc/{pid}/status").read_text()


def has_privilege(status):
    """Of what /proc/PID/status says."""
    return any(int(line.split()[1], 16) >> 12 & 1 for line in status.splitlines()
               if line.startswith(("CapInh", "CapPrm", "CapEff", "CapAmb")))


def expect_no_privilege(pid):
    """Neither the monitor nor the processes that run guest code could change the host's network."""
    found = [pid]
    for one in found:
        for task in pathlib.Path(f"/proc/{one}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                found += [int(child) for child in (task / "children").read_text().split()]
                status = (task / "status").read_text()
                expect(not has_privilege(status), f"process {one}: {status}")
    expect(len(found) > 1, "no process runs guest code")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


FIRST, SECOND = "52:54:00:00:09:0a", "52:54:00:00:09:0b"


def talk(place):
    """Two guests on one bridge, and the host's own end of it."""
    body = os.urandom(4 * MIB)
    control = place.home / "first.sock"
    with privileged(place), dhcp_server(place, {FIRST: "10.9.0.10", SECOND: "10.9.0.11"}), \
            web_server(body, HOST) as port, \
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
        for tap in taps():
            expect(not addresses(tap), f"the host has {addresses(tap)} at the guest's wire")
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
    with privileged(place), dhcp_server(place, {FIRST: "10.9.0.10"}), web_server(body, HOST) as port, \
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


def open_tap(flags, name="given"):
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
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


# ---- through the daemon ----


def await_address(platform, name, address):
    while True:
        shown = platform.ok("GET", f"/v1/instances/{name}")
        if shown.get("address") == address:
            return
        platform.next_change(shown["revision"], shown["id"])


def await_answer(address):
    """What is given an address needs a moment to take it."""
    while subprocess.run(["busybox", "ping", "-c", "1", "-W", "1", address], check=False,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        pass


def type_on_console(platform, instance, command):
    """What the guest answers to a command on its serial console."""
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(600)
        console.connect(f"{platform.home}/corbeld/vm/{instance}/console.sock")
        console.sendall(f"{command}; echo status=$?.\n".encode())
        got = b""
        while not re.search(rb"status=\d+\.", got):
            piece = console.recv(65536)
            expect(piece, f"the console ended: {got}")
            got += piece
    return got.decode(errors="replace")


def keep_tenants_apart(platform, card, machine):
    """A guest that takes another's address says nothing any more; the other hears nothing of it."""
    said = type_on_console(platform, machine, f"ip addr add 10.9.0.11/24 dev eth0; ping -c 1 {HOST}")
    expect("status=0." in said, said)
    before = platform.ok("GET", f"/v1/instances/{machine}/statistics")["net.tx_dropped"]
    said = type_on_console(platform, machine, f"ip link set eth0 down; ip link set eth0 address {card['mac']}; "
                           f"ip link set eth0 up; ping -c 1 -W 1 {HOST}")
    expect("status=1." in said, said)
    after = platform.ok("GET", f"/v1/instances/{machine}/statistics")["net.tx_dropped"]
    expect(after > before, f"{before} and {after} frames were dropped")


def refuse_wrong_networks(platform):
    nobody = {"image": "busybox", "desired": "stopped"}
    for network, word in (("bridge:br8", f"there is user, bridge:{BRIDGE}, bridge:br9"), ("bridge:br9", "ip link add br9"),
                          ("bridge:", "bridge:NAME"), ("bridge:a b", "bridge:NAME"), ("vlan:7", "bridge:NAME"),
                          ("bridge:abcdefghijklmnop", "1 to 22 bytes"), ("", "1 to 22 bytes"), (7, "1 to 22 bytes")):
        for path, body in (("nics", {}), ("instances", nobody)):
            error = platform.refused(400, "POST", f"/v1/{path}", {**body, "network": network}, code="invalid", field="network")
            expect(word in error["message"], f"{error}")
    forwards = [{"host_port": 0, "guest_port": 80}]
    platform.refused(400, "POST", "/v1/instances", {**nobody, "network": f"bridge:{BRIDGE}", "forwards": forwards},
                     code="invalid", field="forwards")
    platform.refused(409, "POST", "/v1/instances", {**nobody, "network": "user", "nic": "card"}, code="conflict", field="network")
    expect(len(platform.ok("GET", "/v1/nics")["items"]) == 1 and not platform.ok("GET", "/v1/instances")["items"],
           "something of it was kept")


def change_network(platform, name):
    """While it is stopped, its own card leads elsewhere; ports are forwarded in one of them only."""
    forwards = [{"host_port": 0, "guest_port": 80}]
    path = f"/v1/instances/{name}"
    mac = platform.ok("GET", f"/v1/nics/{platform.ok('GET', path)['nic']}")["mac"]
    platform.refused(409, "PATCH", path, {"network": "user"}, code="conflict")
    platform.refused(400, "PATCH", path, {"forwards": forwards}, code="invalid", field="forwards")
    expect("operation" not in platform.ok("PATCH", path, {"forwards": []}), "work for nothing")
    platform.finish(platform.ok("POST", f"{path}/stop", {"force": True}))
    expect(platform.ok("PATCH", path, {"network": None})["instance"]["network"] == "user", "it leads elsewhere")
    platform.ok("PATCH", path, {"forwards": forwards})
    platform.refused(400, "PATCH", path, {"network": f"bridge:{BRIDGE}"}, code="invalid", field="forwards")
    platform.refused(400, "PATCH", path, {"nic": "spare"}, code="invalid", field="forwards")
    platform.ok("PATCH", path, {"forwards": []})
    shown = platform.ok("PATCH", path, {"network": f"bridge:{BRIDGE}"})["instance"]
    card = platform.ok("GET", f"/v1/nics/{shown['nic']}")
    expect(card["network"] == shown["network"] == f"bridge:{BRIDGE}" and card["mac"] == mac, f"{shown} {card}")


def await_end(platform, operation):
    while operation["state"] in ("pending", "running"):
        operation = platform.ok("GET", f"/v1/operations/{operation['id']}/wait")
    return operation


def take_its_name(platform, name):
    """Where another device has the name of its tap, that stays as it is, and the machine says why it does not run."""
    path = f"/v1/instances/{name}"
    device = f"cb{platform.ok('GET', path)['id'][-13:]}"
    ip("link", "add", device, "type", "bridge")
    operation = await_end(platform, platform.ok("POST", f"{path}/start")["operation"])
    shown = platform.ok("GET", path)
    for word in (device, "no tap", f"ip link del {device}"):
        expect(word in operation.get("error", "") and word in shown["reason"], f"{operation} {shown}")
    expect(operation["state"] == shown["state"] == "failed" and "master" not in links()[device], f"{operation} {shown}")
    ip("link", "del", device)
    tap = open_tap(IFF_TAP | IFF_NO_PI, device)
    operation = platform.ok("POST", f"{path}/start")["operation"]
    while device not in (shown := platform.ok("GET", path)).get("reason", ""):
        platform.next_change(shown["revision"], shown["id"])
    said = [row["text"] for row in platform.ok("GET", "/v1/events?limit=1000")["items"] if row["action"] == "instance.waiting"]
    expect(len(said) == 1 and shown["reason"] in said[0] and shown["state"] == "starting", f"{shown} {said}")
    expect("master" not in links()[device], "another's tap is in the bridge")
    os.close(tap)
    platform.finish({"operation": operation})
    shown = platform.ok("GET", path)
    expect(shown["state"] == "running" and "reason" not in shown and links()[device]["master"] == BRIDGE, f"{shown}")
    platform.finish(platform.ok("POST", f"{path}/stop", {"force": True}))


def kill_between_steps(platform, name, others):
    """The daemon killed when the tap is there, and the monitor not yet."""
    script = platform.place.path / "kill-daemon"
    mark = pathlib.Path(platform.home) / "mark"
    script.write_text(f"#!/bin/sh\nif [ ! -e {mark} ]; then (ip -br link; cat /proc/$$/status) >{mark}; exec 5>&-; kill -9 $PPID; exit 1; fi\n"
                      f'exec {platform.place.path}/prefix/bin/corbel-vmm "$@"\n')
    script.chmod(0o755)
    platform.stop_daemon()
    platform.arguments += ("--vmm", str(script))
    platform.start_daemon()
    with contextlib.suppress(OSError, http.client.HTTPException):
        platform.call("POST", f"/v1/instances/{name}/start")
    platform.process.wait(600)
    expect(sum(line.startswith("cb") for line in mark.read_text().splitlines()) == len(others) + 1, mark.read_text())
    expect(not has_privilege(mark.read_text()), f"what the daemon starts gets its privilege: {mark.read_text()}")
    expect(taps() == others, f"a tap has no machine: {taps()}")
    platform.start_daemon()
    platform.settle()
    expect(platform.state(name) == "running" and len(taps()) == len(others) + 1, f"{taps()}")


def kill_monitor(platform, name):
    """A machine whose monitor is killed is on its bridge again, with a tap of the same name."""
    shown = before = platform.ok("GET", f"/v1/instances/{name}")
    names = taps()
    os.kill(before["pid"], signal.SIGKILL)
    while shown.get("pid") in (None, before["pid"]):
        platform.next_change(shown["revision"], shown["id"])
        shown = platform.ok("GET", f"/v1/instances/{name}")
    expect(shown["state"] == "running" and taps() == names, f"{shown} {taps()}")
    expect(all(links()[tap].get("master") == BRIDGE for tap in names), f"{links()}")


def use_daemon(place):
    cards = f"bridge:{BRIDGE}"
    with privileged(place), dhcp_server(place, {FIRST: "10.9.0.10", SECOND: "10.9.0.11"}), \
            Platform(place, "--bridge", BRIDGE, "--bridge", "br9") as platform:
        good, bad = platform.ok("GET", "/v1/host")["bridges"]
        expect(good == {"name": BRIDGE, "ready": True} and not bad["ready"] and "br9" in bad["reason"], f"{good} {bad}")
        card = platform.ok("POST", "/v1/nics", {"name": "card", "network": cards, "mac": FIRST})["nic"]
        refuse_wrong_networks(platform)
        platform.run("nic", "create", "spare", "--network", cards)
        platform.run("run", "busybox", "--name", "second", "--network", cards, "--memory", "128M", "--engine", "soft", "--detach")
        first = platform.launch("first", nic="card")
        second = platform.ok("GET", "/v1/instances/second")
        expect(second["network"] == cards == platform.ok("GET", f"/v1/instances/{first}")["network"], f"{second}")
        await_address(platform, "first", "10.9.0.10")
        await_answer("10.9.0.10")
        listed, _ = platform.run("list")
        expect(cards in listed and "10.9.0.10" in listed, listed)
        words = platform.run("complete", "run", "--network", "")[0].split()
        expect(words == ["user", cards, "bridge:br9"], f"{words}")
        names = taps()
        expect(len(names) == 2 and all(name[:2] == "cb" and links()[name]["master"] == BRIDGE for name in names), f"{names}")
        expect(has_privilege(status_of(platform.process.pid)), "the daemon has no privilege")
        expect_no_privilege(second["pid"])
        _, said = platform.run("forward", "add", "first", "0:80", status=2)
        expect("user-mode" in said, said)
        platform.stop_daemon(signal.SIGKILL)
        expect(taps() == names, "a machine lost its network with the daemon")
        await_answer("10.9.0.10")
        platform.start_daemon()
        platform.settle()
        expect(platform.ok("GET", "/v1/instances/second")["pid"] == second["pid"] and taps() == names, f"{taps()}")
        keep_tenants_apart(platform, card, second["id"])
        change_network(platform, "second")
        others = taps()
        expect(len(others) == 1, f"{others}")
        take_its_name(platform, "second")
        kill_between_steps(platform, "second", others)
        kill_monitor(platform, "second")
        platform.stop_daemon()
        platform.arguments = ("--bridge", "br9")
        platform.start_daemon()
        platform.refused(400, "POST", "/v1/nics", {"network": cards}, code="invalid", field="network")
        platform.finish(platform.ok("POST", "/v1/instances/first/stop", {"force": True}))
        operation = await_end(platform, platform.ok("POST", "/v1/instances/first/start")["operation"])
        expect(operation["state"] == "failed" and f'"{BRIDGE}"' in operation["error"], f"{operation}")
        platform.run("delete", "--all", "--force")
        expect(not taps(), f"{taps()} are left")


def log_in(place):
    """A Debian guest on a bridge is reached at the address that it got there."""
    with privileged(place), dhcp_server(place, {FIRST: "10.9.0.10"}), Platform(place, "--bridge", BRIDGE) as platform:
        platform.use_image("debian")
        cards = f"bridge:{BRIDGE}"
        platform.run("nic", "create", "card", "--network", cards, "--mac", FIRST)
        _, said = platform.run("run", "debian", "--nic", "card", "--engine", "soft", "--detach")
        expect(f"corbel ssh debian    (on {cards}" in said, said)
        out, _ = platform.run("ssh", "--wait", "900", "debian", "--", "ip -brief address")
        expect("10.9.0.10/24" in out, out)
        said, _ = platform.run("doctor")
        expect(re.search(r"(?m)^ok +bridge ", said), said)


def refuse_without_privilege(place):
    with Platform(place, "--bridge", BRIDGE) as platform:
        bridge, = platform.ok("GET", "/v1/host")["bridges"]
        expect(not bridge["ready"] and "CAP_NET_ADMIN" in bridge["reason"], f"{bridge}")
        error = platform.refused(400, "POST", "/v1/nics", {"network": f"bridge:{BRIDGE}"}, code="invalid", field="network")
        expect("AmbientCapabilities=CAP_NET_ADMIN" in error["message"], f"{error}")
        platform.stop_daemon()  # all that it said has been read then
        said = "".join(platform.said)
        platform.start_daemon()
        expect("CAP_NET_ADMIN" in said, f"the daemon said nothing of it: {said}")
    many = [f"corbel-wire{n:03}" for n in range(16)]
    with Platform(place, *(word for name in many for word in ("--bridge", name))) as platform:
        error = platform.refused(400, "POST", "/v1/nics", {"network": f"bridge:{BRIDGE}"}, code="invalid", field="network")
        listed = re.findall(r"bridge:([^ ,]+)", error["message"])
        expect(listed == many[:len(listed)] and listed and "corbeld --bridge NAME" in error["message"], f"{error}")
    with privileged(place), Platform(place) as platform:
        expect(not platform.ok("GET", "/v1/host")["bridges"], "there is a bridge")
        expect(not has_privilege(status_of(platform.process.pid)), "the daemon keeps a privilege that it needs not")
        error = platform.refused(400, "POST", "/v1/nics", {"network": f"bridge:{BRIDGE}"}, code="invalid", field="network")
        expect("corbeld --bridge NAME" in error["message"], f"{error}")
        platform.refused(400, "POST", "/v1/instances", {"image": "busybox", "network": f"bridge:{BRIDGE}"}, field="network")
        _, said = platform.run("run", "busybox", "--network", f"bridge:{BRIDGE}", "--detach", status=2)
        expect("corbeld --bridge NAME" in said, said)


def main():
    enter("busybox", "debian")
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "mtu", str(MTU), "type", "bridge")
    ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    run_tests([("two guests and the host talk on a bridge", talk),
               ("limits hold and a tap may vanish", keep_limits),
               ("a user's own tap", use_own_tap),
               ("what does not fit is refused with the mend", refuse_with_the_mend),
               ("machines of the daemon on a bridge", use_daemon),
               ("ssh into a machine on a bridge", log_in),
               ("a daemon without bridge or privilege refuses", refuse_without_privilege)])


if __name__ == "__main__":
    main()
