#!/bin/sh
# Builds a Debian guest: a whole disk with an unmodified Debian that BIOS, UEFI and a monitor that
# loads kernels can boot, and its kernel and initrd beside it.
# usage: CORBEL_OUT=DIR CORBEL_CACHE=DIR build-debian.sh    (corbel image build debian)
# Settings: CORBEL_SIZE (disk, default 4G), CORBEL_PACKAGES (more packages, separated by commas),
# CORBEL_MODE (root, unshare or fakechroot; chosen by what the host allows when empty),
# CORBEL_NO_CACHE (not empty: install anew even when a disk of the last day is at hand).
set -eu
here=$(dirname "$(readlink -f "$0")")
. "$here/lib.sh"

: "${CORBEL_SIZE:=4G}"
: "${CORBEL_PACKAGES:=}"
: "${CORBEL_MODE:=}"
: "${CORBEL_KIND:=debian}"
: "${CORBEL_NO_CACHE:=}"
export CORBEL_SIZE

packages=systemd-sysv,dbus,libpam-systemd,systemd-resolved,udev,kmod,linux-image-cloud-amd64
packages=$packages,initramfs-tools,lz4,openssh-server,iproute2,iputils-ping,netbase,e2fsprogs,wget
packages=$packages,grub-cloud-amd64,cloud-init,cloud-guest-utils,sudo,qemu-guest-agent
[ -z "$CORBEL_PACKAGES" ] || packages=$packages,$CORBEL_PACKAGES

need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need debugfs e2fsprogs
need sfdisk fdisk
need mformat mtools
need perl perl
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

# Installs Debian into $1/root.tar.
install_system() {
    is_work=$1
    archives=$CORBEL_CACHE/debs-$CORBEL_SUITE
    mkdir -p "$archives"
    write_sources "$is_work/sources.list"
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
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/lib/binfmt.d/python3*' \
        --setup-hook='mkdir -p "$1/var/cache/apt/archives" "$1/etc/initramfs-tools/conf.d"' \
        --setup-hook="sync-in '$archives' /var/cache/apt/archives/" \
        --setup-hook="copy-in '$here/debian/initramfs.conf' /etc/initramfs-tools/conf.d/" \
        --setup-hook='mkdir -p "$1/usr/share/initramfs-tools/modules.d"' \
        --setup-hook="copy-in '$here/debian/initramfs.modules' /usr/share/initramfs-tools/modules.d/" \
        --customize-hook="sync-out /var/cache/apt/archives '$archives'" \
        --customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' \
        --customize-hook='mkdir -p "$1/boot/grub/i386-pc" "$1/boot/grub/x86_64-efi"' \
        --customize-hook='cp "$1"/usr/lib/grub/i386-pc/*.mod "$1"/usr/lib/grub/i386-pc/*.lst "$1"/usr/lib/grub/i386-pc/boot.img "$1/boot/grub/i386-pc"' \
        --customize-hook='cp "$1"/usr/lib/grub/x86_64-efi/*.mod "$1"/usr/lib/grub/x86_64-efi/*.lst "$1/boot/grub/x86_64-efi"' \
        --customize-hook='chroot "$1" grub-mkimage -O i386-pc -p "(,gpt1)/boot/grub" -o /boot/grub/i386-pc/core.img biosdisk part_gpt ext2' \
        --customize-hook='chroot "$1" grub-editenv /boot/grub/grubenv create' \
        --customize-hook='chroot "$1" systemctl -q enable systemd-networkd systemd-resolved' \
        "$CORBEL_SUITE" "$is_work/root.tar" - <"$is_work/sources.list" || rc=$?
    [ "$rc" = 0 ] || die "Debian could not be installed (mmdebstrap --mode=$CORBEL_MODE exited $rc; the reason stands above)"
    rm -f "$archives/lock"
}

# Everything that decides what the disk holds, but for what belongs to one image.
base_key() {
    {
        printf '%s\n' "$packages" "$CORBEL_SIZE" "$CORBEL_SUITE" "$CORBEL_MIRROR" \
            "$CORBEL_SECURITY_MIRROR"
        cat "$here/build-debian.sh" "$here/lib.sh" "$here"/debian/*
    } | sha256sum | cut -c 1-16
}

# A disk without secrets, kept for a day: the next image of the same wishes starts from it.
base=$CORBEL_CACHE/disk-$(base_key)
exec 9>"$base.lock"
flock 9
if [ -n "$CORBEL_NO_CACHE" ] || [ -z "$(find "$base/version" -mmin -1440 2>/dev/null)" ]; then
    rm -rf "$base" "$base.making"
    mkdir -p "$base.making/work"
    trap 'rm -rf "$base.making"' EXIT
    step "installing Debian $CORBEL_SUITE (mode $CORBEL_MODE)"
    install_system "$base.making/work"
    step "writing the disk ($CORBEL_SIZE, sparse)"
    if [ "$(id -u)" = 0 ]; then
        sh "$here/debian/make-disk.sh" "$base.making/work" "$base.making" "$here"
    else
        fakeroot sh "$here/debian/make-disk.sh" "$base.making/work" "$base.making" "$here"
    fi
    rm -rf "$base.making/work"
    mv "$base.making" "$base"
else
    step "taking the disk that was made on $(date -r "$base/version" '+%F at %R')"
fi

step "giving it keys of its own"
sh "$here/debian/personalize.sh" "$base" "$CORBEL_OUT"
flock -u 9
version=$(cat "$CORBEL_OUT/version")
rm -f "$CORBEL_OUT/version"

# Disks of days gone by; one that is just being made or copied is locked.
find "$CORBEL_CACHE" -maxdepth 1 -name 'disk-*.lock' -mmin +1440 | while read -r lock; do
    (flock -n 8 && rm -rf "${lock%.lock}" "${lock%.lock}.making") 8>"$lock" || :
done

# The first disk of the monitor is vda always; looking for the partition by its id would make each
# boot almost a second longer on the software engine. The boot loaders on the disk do look.
cat >"$CORBEL_OUT/image.json" <<EOT
{
  "kind": "$CORBEL_KIND",
  "suite": "$CORBEL_SUITE",
  "kernel": "$version",
  "cmdline": "root=/dev/vda1 rw console=ttyS0 quiet",
  "ready": "login:",
  "memory_mib": 512,
  "power_button": true,
  "user": "root"
}
EOT
