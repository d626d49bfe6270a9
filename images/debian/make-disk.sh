# Second half of build-debian.sh, run as root or under fakeroot: unpacks the installed tree, adds its
# configuration and packs it into a disk with a partition table, two boot loaders and an ext4 file
# system, without mounting anything.
# usage: CORBEL_SIZE=SIZE make-disk.sh WORK OUT HERE
set -eu
work=$1 out=$2 here=$3
root=$work/root
disk=$out/disk.raw

# Sectors of 512 bytes. The root partition is the last, so that it can grow with the disk.
bios_start=2048 bios_size=2048
esp_start=4096 esp_size=61440
root_start=65536

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

new_uuid() { cat /proc/sys/kernel/random/uuid; }

unpack() {
    mkdir "$root"
    # /dev stays empty: the kernel fills it, and device nodes would need a privilege.
    tar -x -p --numeric-owner --exclude='./dev/*' -C "$root" -f "$work/root.tar"
    rm -f "$work/root.tar"
}

put() { # put FILE PATH MODE
    mkdir -p "$(dirname "$root/$2")"
    cp "$here/debian/$1" "$root/$2"
    chmod "$3" "$root/$2"
}

configure() {
    printf 'debian\n' >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
    cat >"$root/etc/fstab" <<EOT
PARTUUID=$root_partition / ext4 errors=remount-ro,x-systemd.growfs 0 1
PARTUUID=$esp_partition /boot/efi vfat umask=0077,noauto,x-systemd.automount 0 0
EOT
    mkdir -p "$root/boot/efi"
    put 80-dhcp.network etc/systemd/network/80-dhcp.network 644
    put cloud.cfg etc/cloud/cloud.cfg.d/90-corbel.cfg 644
    put cloud-init-generator etc/systemd/system-generators/cloud-init-generator 755
    put 40-hotplug.rules etc/udev/rules.d/40-hotplug.rules 644
    put grow-generator etc/systemd/system-generators/grow-root-partition 755
    put grub.default etc/default/grub.d/corbel.cfg 644
    # All partitions are in fstab; looking for others costs each boot time.
    ln -s /dev/null "$root/etc/systemd/system-generators/systemd-gpt-auto-generator"
    # From now on upgrades of GRUB install themselves.
    : >"$root/etc/grub.d/enable_cloud"
    chmod 644 "$root/etc/fstab" "$root/etc/hosts"
    ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
    # Empty, not absent: each copy of the image gets an id of its own at its first boot.
    : >"$root/etc/machine-id"
    rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
    rm -f "$root"/etc/ssh/ssh_host_*
    mkdir -p "$root/root/.ssh"
    chmod 700 "$root/root" "$root/root/.ssh"
}

# What update-grub will replace at the first change of kernels.
write_grub_menu() {
    cat >"$root/boot/grub/grub.cfg" <<EOT
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=1
search --no-floppy --fs-uuid --set=root $root_uuid
menuentry "Debian, Linux $version" {
    linux /boot/vmlinuz-$version root=PARTUUID=$root_partition rw console=tty0 console=ttyS0,115200
    initrd /boot/initrd.img-$version
}
EOT
    chmod 644 "$root/boot/grub/grub.cfg"
}

make_partitions() {
    rm -f "$disk"
    truncate -s "$CORBEL_SIZE" "$disk"
    sectors=$(($(stat -c %s "$disk") / 512))
    # The table's copy is at the end; a whole MiB is left to it.
    root_size=$(((sectors - root_start) / 2048 * 2048 - 2048))
    [ "$root_size" -ge 2097152 ] || die "a disk of $CORBEL_SIZE is too small for Debian; 2G is enough"
    sfdisk -q --no-reread --no-tell-kernel "$disk" <<EOT
label: gpt
unit: sectors
disk1 : start=$root_start, size=$root_size, uuid=$root_partition, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="root"
disk14 : start=$bios_start, size=$bios_size, type=21686148-6449-6E6F-744E-656564454649, name="bios"
disk15 : start=$esp_start, size=$esp_size, uuid=$esp_partition, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="esp"
EOT
}

# Bytes of $2 (octal, as printf takes them) over the disk at offset $1.
patch_disk() {
    # shellcheck disable=SC2059 # the escapes are meant
    printf "$2" | dd of="$disk" bs=1 seek="$1" conv=notrunc status=none
}

# A number as eight bytes, the low one first.
le64() { perl -e 'printf "%s", join "", map { sprintf "\\%03o", $_ } unpack "C8", pack "Q<", $ARGV[0]' "$1"; }

# What grub-install does on a mounted disk: the first sector names the sector of the core image, whose
# own first sector names where its rest lies.
install_bios_loader() {
    grub=$root/boot/grub/i386-pc
    [ "$(stat -c %s "$grub/core.img")" -le $((bios_size * 512)) ] || die "GRUB's core image is too long"
    dd if="$grub/boot.img" of="$disk" bs=440 count=1 conv=notrunc status=none
    dd if="$grub/core.img" of="$disk" bs=512 seek=$bios_start conv=notrunc status=none
    patch_disk $((0x5c)) "$(le64 $bios_start)"
    patch_disk $((0x66)) '\220\220' # trust the BIOS with the number of the drive
    patch_disk $((bios_start * 512 + 0x1f4)) "$(le64 $((bios_start + 1)))"
}

# Debian's signed loaders, where firmware looks on a disk that it knows nothing of.
install_uefi_loader() {
    esp=$disk@@$((esp_start * 512))
    cat >"$work/grub.cfg" <<EOT
search.fs_uuid $root_uuid root
set prefix=(\$root)'/boot/grub'
configfile \$prefix/grub.cfg
EOT
    MTOOLS_SKIP_CHECK=1
    export MTOOLS_SKIP_CHECK
    mformat -i "$esp" -v ESP -T $esp_size -h 255 -s 63 ::
    mmd -i "$esp" ::/EFI ::/EFI/BOOT ::/EFI/debian
    mcopy -i "$esp" "$root/usr/lib/shim/shimx64.efi.signed" ::/EFI/BOOT/BOOTX64.EFI
    mcopy -i "$esp" "$root/usr/lib/shim/shimx64.efi.signed" ::/EFI/debian/shimx64.efi
    mcopy -i "$esp" "$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" ::/EFI/BOOT/grubx64.efi
    mcopy -i "$esp" "$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" ::/EFI/debian/grubx64.efi
    mcopy -i "$esp" "$work/grub.cfg" ::/EFI/debian/grub.cfg
}

# A hole reads as zeros, so tables need no zeroing now and none by the guest's kernel later. GRUB
# reads no file systems whose checksum seed is stored.
make_root() {
    mke2fs -q -F -t ext4 -L corbel-root -U "$root_uuid" -m 1 -O ^metadata_csum_seed \
        -E "offset=$((root_start * 512))$1" -d "$root" "$disk" "$((root_size / 2))k" 2>"$work/mke2fs.log"
}

unpack
kernel=$(cd "$root/boot" && ls vmlinuz-* | sort -V | tail -n 1)
version=${kernel#vmlinuz-}
[ -s "$root/boot/initrd.img-$version" ] || die "the installed system has no initrd for kernel $version"
root_uuid=$(new_uuid) root_partition=$(new_uuid) esp_partition=$(new_uuid)

configure
write_grub_menu
chown -R 0:0 "$root/root" "$root/boot/grub" "$root/etc/systemd" "$root/etc/cloud" "$root/etc/fstab" \
    "$root/etc/hosts" "$root/etc/hostname"
make_partitions
make_root ,assume_storage_prezeroed=1 || make_root '' || {
    cat "$work/mke2fs.log" >&2
    die "the file system could not be made; a longer disk may mend it (--size)"
}
install_bios_loader
install_uefi_loader

cp "$root/boot/$kernel" "$out/vmlinuz"
cp "$root/boot/initrd.img-$version" "$out/initrd"
chmod 644 "$out/vmlinuz" "$out/initrd" "$disk"
printf '%s\n' "$version" >"$out/version"
