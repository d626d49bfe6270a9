#!/bin/sh
# Builds the busybox guest: Debian's cloud kernel and an initramfs with busybox-static.
# usage: CORBEL_OUT=DIR CORBEL_CACHE=DIR build-busybox.sh    (corbel image build busybox)
set -eu
here=$(dirname "$(readlink -f "$0")")
. "$here/lib.sh"

need dpkg-deb dpkg
need cpio cpio
apt_setup

step "reading package lists"
apt_update
step "fetching the kernel and busybox"
kernel_pkg=$(kernel_package)
[ -n "$kernel_pkg" ] || die "linux-image-cloud-amd64 names no kernel package"
kernel_deb=$(fetch_deb "$kernel_pkg")
busybox_deb=$(fetch_deb busybox-static)

work=$CORBEL_OUT/.work
mkdir -p "$work/kernel" "$work/busybox" "$work/root"
dpkg-deb --fsys-tarfile "$kernel_deb" | tar -x -C "$work/kernel" ./boot ./lib/modules
dpkg-deb --fsys-tarfile "$busybox_deb" | tar -x -C "$work/busybox"
version=${kernel_pkg#linux-image-}

step "making the initramfs"
root=$work/root
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/etc" \
    "$root/root" "$root/mnt" "$root/lib/modules"
cp "$work/busybox/bin/busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -m 755 "$here/busybox/init" "$root/init"
install -m 755 "$here/busybox/udhcpc.script" "$root/etc/udhcpc.script"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'corbel-busybox\n' >"$root/etc/hostname"

# Flat: the init loads them by name in the order of this list, dependencies first.
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio \
    virtio_blk failover net_failover virtio_net virtio_console virtio-rng virtio_balloon virtio_mem \
    vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
    file=$(find "$work/kernel/lib/modules" -name "$module.ko" | head -n 1)
    [ -n "$file" ] || die "the kernel $version has no module $module"
    cp "$file" "$root/lib/modules/"
done

# Not compressed: a monitor puts it into guest memory as it is, and unpacking costs boot time.
(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible) \
    >"$CORBEL_OUT/initrd"
cp "$work/kernel/boot/vmlinuz-$version" "$CORBEL_OUT/vmlinuz"
rm -rf "$work"

cat >"$CORBEL_OUT/image.json" <<EOF
{
  "kind": "busybox",
  "kernel": "$version",
  "cmdline": "console=ttyS0 quiet",
  "ready": "corbel-busybox: ready",
  "memory_mib": 128
}
EOF
