#!/usr/bin/python3
"""Disk locks on shared storage: a Debian guest serves a directory by NFS and mounts it twice, as itself
and as another host (to the server, a network namespace with an identifier of its own is one). Corbel's
programs use one image from both."""

import ctypes.util
import pathlib
import subprocess

from harness import BUILD, Control, Machine, Ssh, expect, guest, run_tests, wait_greeting
from test_boot import DEBIAN_CMDLINE, arguments

CONTROL = "control"
LEASE_S = 10  # after which the server gives up a client that is silent
DISK = "disk.qcow2"

# A server's first clients wait for those that it forgot, so its times are set while it is stopped.
SHARE = f"""set -e
mkdir -p /srv/share /mnt/here /mnt/there
echo '/srv/share *(rw,sync,no_subtree_check,no_root_squash,insecure)' >/etc/exports
systemctl stop nfs-server
echo {LEASE_S} >/proc/fs/nfsd/nfsv4leasetime
echo {LEASE_S} >/proc/fs/nfsd/nfsv4gracetime
systemctl start nfs-server
ip netns add there
ip link add outer type veth peer name inner netns there
ip addr add 10.99.0.1/24 dev outer
ip -n there addr add 10.99.0.2/24 dev inner
ip link set outer up
ip -n there link set inner up
modprobe nfsv4
ip netns exec there sh -c 'echo there >/sys/fs/nfs/net/nfs_client/identifier'
mount -t nfs4 -o vers=4.2 10.99.0.1:/srv/share /mnt/here
nsenter --net=/run/netns/there mount -t nfs4 -o vers=4.2 10.99.0.1:/srv/share /mnt/there
"""
# Whoever holds the image runs until it is killed; what comes first tells that it has it.
HOLDERS = {
    "corbel nbd serve": "corbel nbd serve {disk} --socket /run/holder.sock "
                        ">/run/held 2>/run/holder.log",
    "corbel-vmm": "corbel-vmm --engine soft --memory 128M --kernel /opt/corbel/vmlinuz --initrd "
                  "/opt/corbel/initrd --cmdline 'console=ttyS0 corbel.hold' --serial none "
                  "--disk {disk},format=qcow2 --ready-fd 5 5>/run/held >/run/holder.log 2>&1",
}


def image():
    return guest("nfs", "debian", "--name", "nfs", "--packages", "nfs-kernel-server")


def give_programs(ssh):
    """Corbel, the libraries that the guest does not have, and a guest for the guest."""
    files = [str(BUILD / "corbel"), str(BUILD / "corbel-vmm"), str(guest("busybox").kernel),
             str(guest("busybox").initrd)]
    nbd = next(pathlib.Path("/usr/lib").glob(f"*/{ctypes.util.find_library('nbd')}"))
    listed = subprocess.run(["ldd", *files[:2], nbd], check=True, stdout=subprocess.PIPE, text=True)
    libraries = {words[2] for words in map(str.split, listed.stdout.splitlines())
                 if len(words) > 2 and words[1] == "=>"}
    tar = subprocess.run(["tar", "-chf", "-", "-P", "--transform", "s,.*/,,", *files, nbd,
                          *sorted(libraries)], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(ssh.base + ["mkdir /opt/corbel && tar -xf - -C /opt/corbel"], input=tar, check=True)


class Hosts:
    """The guest: its mounts are two hosts' that share a disk."""

    def __init__(self, ssh):
        self.ssh = ssh

    def start(self, command):
        return self.ssh.start("export PATH=/opt/corbel:$PATH LD_LIBRARY_PATH=/opt/corbel; cd /root; "
                              + command)

    def run(self, command):
        result = self.start(command)
        expect(result.returncode == 0, f"{command}: {result.stdout}")
        return result.stdout

    def hold(self, host, holder, disk=DISK):
        """Until it is killed. A process of its own, which ends no other."""
        command = HOLDERS[holder].format(disk=f"/mnt/{host}/{disk}")
        self.run(f"rm -f /run/held /run/holder.sock; cat >/run/hold <<'END'\n"
                 f"echo $$ >/run/pid; exec {command}\nEND\n"
                 "setsid sh /run/hold </dev/null >/dev/null 2>&1 & "
                 "until [ -s /run/held ]; do sleep 0.1; kill -0 $! || { cat /run/holder.log; exit 1; }; done")

    def kill(self):
        self.run("kill -9 $(cat /run/pid); while kill -0 $(cat /run/pid) 2>/dev/null; do sleep 0.1; done")

    def expect_refused(self, host):
        path = f"/mnt/{host}/{DISK}"
        for command in (f"corbel image resize {path} +1M", f"corbel nbd serve {path} --socket /run/x.sock",
                        f"corbel-vmm --engine soft --kernel /opt/corbel/vmlinuz --disk {path},format=qcow2",
                        f"corbel image check {path} --repair all"):
            result = self.start(command)
            expect(result.returncode != 0 and path in result.stdout and "in use" in result.stdout,
                   f"{command} while another host has it: {result.returncode} {result.stdout}")


def refuse_second_writer(hosts):
    hosts.run(f"corbel image create /mnt/here/{DISK} 64M")
    for host, other in (("here", "there"), ("there", "here")):
        for holder in HOLDERS:
            hosts.hold(host, holder)
            hosts.expect_refused(other)
            hosts.kill()
            hosts.run(f"corbel image resize /mnt/{other}/{DISK} +1M && corbel image check /mnt/{other}/{DISK}")


def outlive_a_lost_host(hosts):
    """A host that was cut off loses its disk to another, and cannot write when it is back."""
    disk = "lost.qcow2"
    hosts.run(f"corbel image create /mnt/here/{disk} 16M && head -c 16M /dev/urandom >noise.raw")
    hosts.hold("there", "corbel nbd serve", disk)
    hosts.run("corbel pool create there 'nbd+unix:///?socket=/run/holder.sock' && "
              "corbel pool-volume copy-from disk noise.raw --pool there --replace")
    hosts.run("ip -n there link set inner down")
    hosts.run(f"until corbel image resize /mnt/here/{disk} +1M 2>/dev/null; do sleep 0.5; done; "
              f"corbel image check /mnt/here/{disk} && sha256sum /srv/share/{disk} >sum")
    hosts.run("ip -n there link set inner up")
    result = hosts.start("corbel pool-volume copy-from disk noise.raw --pool there --replace")
    expect(result.returncode != 0, f"a host that lost its lock wrote: {result.stdout}")
    hosts.kill()
    hosts.run("sha256sum -c sum")


def use_shared_storage(place):
    disk = place.disk(image().disk, "nfs.raw")
    with Machine(place, arguments(image(), 2, "1G", f"{image().root} {DEBIAN_CMDLINE}", "--disk", disk,
                                  "--net", "user,forward=0:22", "--control", CONTROL)) as m:
        m.wait_text("login:")
        with Control(place.home / CONTROL) as control:
            port = control.expect_ok("status")["forwards"][0]["host_port"]
        wait_greeting(port, m)
        ssh = Ssh(image(), port, m)
        give_programs(ssh)
        ssh.run(SHARE)
        hosts = Hosts(ssh)
        refuse_second_writer(hosts)
        outlive_a_lost_host(hosts)


if __name__ == "__main__":
    run_tests([("an image on NFS is written by one host at a time", use_shared_storage)])
