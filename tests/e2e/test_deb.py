#!/usr/bin/python3
"""The Debian package in roots of its own: installed, upgraded, removed and purged, with systemd's tools
and without. Needs root, mmdebstrap and Debian's archive.

usage: test_deb.py    (CORBEL_DEBS: the package and a later one; `make test-deb` makes both)
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from harness import expect, guest, run_tests

if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
    print("skipped: this needs root and mmdebstrap")
    sys.exit(77)

FIRST, SECOND = (pathlib.Path(name).resolve() for name in os.environ["CORBEL_DEBS"].split())
ENTER = ('mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/run" && '
         'exec chroot "$0" /bin/sh -ec "$1"')
# What dpkg and the tools that make users keep of their own.
NOT_OURS = re.compile(r"/(dev|proc|run|tmp)(/|$)|/var/(lib/dpkg|log|cache)/|/etc/(passwd|group|shadow|gshadow)-$|"
                      r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/etc/\.pwd\.lock$")


def version(package):
    return subprocess.run(["dpkg-deb", "-f", package, "Version"], check=True, capture_output=True, text=True).stdout.strip()


def needs(package):
    text = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True).stdout
    return [word.split()[0] for word in text.strip().split(",")]


class Root:
    """Debian in a directory; what runs there sees its own processes and mounts."""

    made = {}

    def __init__(self, *more):
        if more not in Root.made:
            Root.made[more] = pathlib.Path(tempfile.mkdtemp(prefix="corbel-deb-"))
            subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join([*needs(FIRST), *more])}",
                            "bookworm", Root.made[more]], check=True, stdin=subprocess.DEVNULL)
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="corbel-deb-"))
        subprocess.run(["cp", "-a", f"{Root.made[more]}/.", self.path], check=True)
        for package in (FIRST, SECOND):
            shutil.copy(package, self.path / "tmp")

    def run(self, script, may_fail=False):
        done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, self.path, script],
                              check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"})
        expect(may_fail or done.returncode == 0, f"{script}:\n{done.stdout}")
        return done.stdout

    def files(self):
        found = {}
        for folder, names, files in os.walk(self.path):
            for name in names + files:
                path = pathlib.Path(folder) / name
                inside = "/" + str(path.relative_to(self.path))
                if not NOT_OURS.search(inside):
                    found[inside] = os.readlink(path) if path.is_symlink() else path.stat().st_mode
        return found

    def accounts(self):
        return [sorted((self.path / "etc" / name).read_text().splitlines()) for name in ("passwd", "group")]

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        shutil.rmtree(self.path, ignore_errors=True)


def compare(before, after):
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    expect(not changed, f"left behind or changed: {changed[:40]}")


def live_without_systemd(place):
    """Installed, used, upgraded with a machine that runs on, removed with the machine, purged."""
    with Root() as root:
        before, accounts = root.files(), root.accounts()
        root.run(f"dpkg -i /tmp/{FIRST.name}")
        expect("corbel" in root.run("id corbel"), "no user")
        state = (root.path / "var/lib/corbel").stat()
        expect(state.st_mode & 0o777 == 0o700 and state.st_uid != 0, f"{oct(state.st_mode)} {state.st_uid}")
        for program in ("corbel", "corbeld", "corbel-vmm"):
            expect(version(FIRST) in root.run(f"{program} --version"), program)
        expect("debian" in root.run("corbel image catalogue"), "the images' catalogue and builders are missing")
        for place in ("bash-completion/completions/corbel", "zsh/vendor-completions/_corbel",
                      "fish/vendor_completions.d/corbel.fish"):
            shell = place.partition("-" if place.startswith("bash") else "/")[0]
            expect((root.path / "usr/share" / place).read_text() == root.run(f"corbel completion {shell}"), place)
        image = root.path / "var/lib/corbel/images/busybox"
        image.mkdir(parents=True)
        for name in ("vmlinuz", "initrd", "image.json"):
            shutil.copy(guest("busybox").dir / name, image / name)
        for path in (image.parent, image, *image.iterdir()):
            os.chown(path, state.st_uid, state.st_gid)
            path.chmod(0o755 if path.is_dir() else 0o644)
        with open(root.path / "etc/default/corbeld", "a", encoding="ascii") as file:
            file.write("# mine\n")
        said = root.run(f"""
            export CORBEL_HOST=unix:/run/corbel/api.sock
            list() {{ corbel list --json; }}
            wait_for_daemon() {{ until [ -S /run/corbel/api.sock ] && list >/dev/null 2>&1; do :; done; }}
            /etc/init.d/corbeld start; wait_for_daemon
            corbel run busybox --name vm --engine soft --detach
            pid=$(sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p' /run/corbel/vm/*/run.json)
            echo machine $(stat -c %U /proc/$pid) $(readlink /proc/$pid/exe)
            dpkg -i --force-confold /tmp/{SECOND.name}
            /etc/init.d/corbeld restart; wait_for_daemon
            list | grep -q running && [ -d /proc/$pid ] && echo runs on
            corbeld --version
            dpkg -r corbel
            [ -d /proc/$pid ] && grep -q '^State:.Z' /proc/$pid/status || [ ! -d /proc/$pid ] && echo machine ended
            """)
        for text in ("machine corbel /usr/bin/corbel-vmm", "runs on", version(SECOND), "machine ended"):
            expect(text in said, f"not {text!r}:\n{said}")
        expect("# mine" in (root.path / "etc/default/corbeld").read_text(), "the user's configuration is gone")
        expect(not (root.path / "usr/bin/corbeld").exists() and (root.path / "var/lib/corbel/state.db").exists(),
               "removal keeps programs, or loses machines")
        root.run("dpkg -P corbel")
        compare(before, root.files())
        expect(root.accounts() == accounts, "accounts are left")


def live_with_systemd(place):
    """Its units are right, and enabled as long as the package is there."""
    with Root("systemd") as root:
        before = root.files()
        root.run(f"dpkg -i /tmp/{FIRST.name}")
        expect("corbel" in root.run("id corbel"), "no user")
        for words in ("", "--user"):
            folder = "user" if words else "system"
            said = root.run(f"mkdir -p /run/user/0 && XDG_RUNTIME_DIR=/run/user/0 systemd-analyze verify --man=no {words} "
                            f"/usr/lib/systemd/{folder}/corbeld.service /usr/lib/systemd/{folder}/corbeld.socket")
            expect("corbel" not in said, said)
        enabled = root.run("systemctl is-enabled corbeld.socket corbeld.service")
        expect(enabled.split() == ["enabled", "enabled"], enabled)
        root.run("systemctl disable corbeld.service")
        root.run(f"dpkg -i /tmp/{SECOND.name}")
        expect(root.run("systemctl is-enabled corbeld.service", may_fail=True).split() == ["disabled"],
               "an upgrade enables it again")
        root.run("dpkg -r corbel && dpkg -P corbel")
        compare(before, root.files())


if __name__ == "__main__":
    try:
        run_tests([("without systemd: installed, used, upgraded, removed, purged", live_without_systemd),
                   ("with systemd: units are right and enabled", live_with_systemd)])
    finally:
        for made in Root.made.values():
            shutil.rmtree(made, ignore_errors=True)
