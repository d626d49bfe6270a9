# Second half of build-debian.sh, run as root or under fakeroot: unpacks the installed tree, adds what
# belongs to this one image, and packs it into an ext4 file system without mounting anything.
# usage: make-disk.sh WORK OUT SIZE HERE
set -eu
work=$1 out=$2 size=$3 here=$4
root=$work/root
mkdir "$root"
# /dev stays empty: the kernel fills it, and device nodes would need a privilege.
tar -x -p --numeric-owner --exclude='./dev/*' -C "$root" -f "$work/root.tar"
rm -f "$work/root.tar"

kernel=$(cd "$root/boot" && ls vmlinuz-* | sort -V | tail -n 1)
version=${kernel#vmlinuz-}
[ -s "$root/boot/initrd.img-$version" ] || {
    echo "error: the installed system has no initrd for kernel $version" >&2
    exit 1
}
cp "$root/boot/$kernel" "$out/vmlinuz"
cp "$root/boot/initrd.img-$version" "$out/initrd"
chmod 644 "$out/vmlinuz" "$out/initrd"
printf '%s\n' "$version" >"$work/version"

mkdir -p "$root/root/.ssh"
cp "$out/ssh_key.pub" "$root/root/.ssh/authorized_keys"
chmod 700 "$root/root" "$root/root/.ssh"
chmod 600 "$root/root/.ssh/authorized_keys"
chown -R 0:0 "$root/root"

printf 'debian\n' >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 errors=remount-ro,x-systemd.growfs 0 1\n' >"$root/etc/fstab"
cp "$here/debian/80-dhcp.network" "$root/etc/systemd/network/80-dhcp.network"
chmod 644 "$root/etc/systemd/network/80-dhcp.network" "$root/etc/fstab" "$root/etc/hosts"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
# Empty, not absent: each copy of the image gets an id of its own at its first boot.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"

# The key the guest will show, so that the first connection is verified too.
for key in "$root"/etc/ssh/ssh_host_*_key.pub; do
    printf '* %s\n' "$(cut -d' ' -f1,2 "$key")"
done >"$out/known_hosts"
chmod 644 "$out/known_hosts"

rm -f "$out/disk.raw"
truncate -s "$size" "$out/disk.raw"
# A hole reads as zeros, so tables need no zeroing now and none by the guest's kernel later.
mke2fs -q -F -t ext4 -L corbel-root -m 1 -E assume_storage_prezeroed=1 -d "$root" "$out/disk.raw" ||
    mke2fs -q -F -t ext4 -L corbel-root -m 1 -d "$root" "$out/disk.raw"
chmod 644 "$out/disk.raw"
