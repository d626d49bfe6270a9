#!/bin/sh
# Builds a Debian guest: an ext4 disk with an unmodified Debian, and its kernel and initrd beside it.
# usage: CORBEL_OUT=DIR CORBEL_CACHE=DIR build-debian.sh    (corbel image build debian)
# Settings: CORBEL_SIZE (disk, default 4G), CORBEL_PACKAGES (more packages, separated by commas),
# CORBEL_MODE (root, unshare or fakechroot; chosen by what the host allows when empty).
set -eu
here=$(dirname "$(readlink -f "$0")")
. "$here/lib.sh"

: "${CORBEL_SIZE:=4G}"
: "${CORBEL_PACKAGES:=}"
: "${CORBEL_MODE:=}"
: "${CORBEL_KIND:=debian}"

packages=systemd-sysv,dbus,libpam-systemd,systemd-resolved,udev,kmod,linux-image-cloud-amd64
packages=$packages,initramfs-tools,lz4,openssh-server,iproute2,iputils-ping,netbase,e2fsprogs,wget
[ -z "$CORBEL_PACKAGES" ] || packages=$packages,$CORBEL_PACKAGES

need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need ssh-keygen openssh-client
need_keyring
[ "$(id -u)" = 0 ] || need fakeroot fakeroot

# Whether this process may make the namespaces that an isolated root file system needs.
may_mount() { [ "$(id -u)" = 0 ] && unshare --mount true 2>/dev/null; }
may_unshare() {
    command -v newuidmap >/dev/null 2>&1 && grep -qs "^$(id -un):" /etc/subuid &&
        unshare --user --map-root-user --mount true 2>/dev/null
}
may_fakechroot() {
    command -v fakechroot >/dev/null 2>&1 && command -v fakeroot >/dev/null 2>&1
}

if [ -z "$CORBEL_MODE" ]; then
    if may_mount; then
        CORBEL_MODE=root
    elif may_unshare; then
        CORBEL_MODE=unshare
    elif may_fakechroot; then
        CORBEL_MODE=fakechroot
    else
        die "this user may make no user namespaces and fakechroot is missing; install it: sudo apt-get install fakechroot fakeroot"
    fi
fi

work=$CORBEL_OUT/.work
mkdir -p "$work"
archives=$CORBEL_CACHE/debs-$CORBEL_SUITE
mkdir -p "$archives"
write_sources "$work/sources.list"

# The console password is random and stays beside the image; sshd takes keys only for root.
password=$(head -c 12 /dev/urandom | base64 | tr -d '/+=' | head -c 12)
export CORBEL_PASSWORD="$password"
ssh-keygen -q -t ed25519 -N '' -C "corbel $CORBEL_KIND" -f "$CORBEL_OUT/ssh_key"

step "installing Debian $CORBEL_SUITE (mode $CORBEL_MODE)"
if [ "$CORBEL_MODE" = fakechroot ]; then
    # systemd's private library is found by an absolute path in its programs, which is the host's
    # here; /lib/systemd is where mmdebstrap lets the loader look.
    shared=libsystemd-shared-252.so
    set -- fakechroot fakeroot mmdebstrap \
        --essential-hook="mkdir -p \"\$1/usr/lib/systemd\" && ln -s ../x86_64-linux-gnu/systemd/$shared \"\$1/usr/lib/systemd/\"" \
        --customize-hook="rm -f \"\$1/usr/lib/systemd/$shared\""
else
    set -- mmdebstrap
fi
rc=0
"$@" --mode="$CORBEL_MODE" --format=tar --variant=apt --include="$packages" \
    --skip=download/empty --skip=essential/unlink \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --setup-hook='mkdir -p "$1/var/cache/apt/archives" "$1/etc/initramfs-tools/conf.d"' \
    --setup-hook="sync-in '$archives' /var/cache/apt/archives/" \
    --setup-hook="copy-in '$here/debian/initramfs.conf' /etc/initramfs-tools/conf.d/" \
    --setup-hook='mkdir -p "$1/usr/share/initramfs-tools/modules.d"' \
    --setup-hook="copy-in '$here/debian/initramfs.modules' /usr/share/initramfs-tools/modules.d/" \
    --customize-hook="sync-out /var/cache/apt/archives '$archives'" \
    --customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' \
    --customize-hook='printf "root:%s\n" "$CORBEL_PASSWORD" | chroot "$1" chpasswd' \
    --customize-hook='chroot "$1" systemctl -q enable systemd-networkd systemd-resolved' \
    "$CORBEL_SUITE" "$work/root.tar" - <"$work/sources.list" || rc=$?
[ "$rc" = 0 ] || die "Debian could not be installed (mmdebstrap --mode=$CORBEL_MODE exited $rc; the reason stands above)"
rm -f "$archives/lock"

step "writing the disk ($CORBEL_SIZE, sparse)"
if [ "$(id -u)" = 0 ]; then
    sh "$here/debian/make-disk.sh" "$work" "$CORBEL_OUT" "$CORBEL_SIZE" "$here"
else
    fakeroot sh "$here/debian/make-disk.sh" "$work" "$CORBEL_OUT" "$CORBEL_SIZE" "$here"
fi

printf '%s\n' "$password" >"$work/password"
install -m 600 "$work/password" "$CORBEL_OUT/console_password"
chmod 600 "$CORBEL_OUT/ssh_key"
version=$(cat "$work/version")
rm -rf "$work"

cat >"$CORBEL_OUT/image.json" <<EOF
{
  "kind": "$CORBEL_KIND",
  "suite": "$CORBEL_SUITE",
  "kernel": "$version",
  "cmdline": "root=/dev/vda rw console=ttyS0 quiet",
  "ready": "login:",
  "memory_mib": 512,
  "power_button": true,
  "user": "root"
}
EOF
