# Last step of build-debian.sh: copies the disk without secrets and gives the copy its own, by
# writing into its file system from outside.
# usage: personalize.sh BASE OUT
set -eu
base=$1 out=$2
root_offset=$((65536 * 512)) # as make-disk.sh lays the disk out
work=$out/.keys
disk=$out/disk.raw

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

umask 077
mkdir "$work"
cp "$base/vmlinuz" "$base/initrd" "$base/version" "$out"
cp --sparse=always --reflink=auto "$base/disk.raw" "$disk"

# The console password is random and stays beside the image; sshd takes keys only for root.
head -c 12 /dev/urandom | base64 | tr -d '/+=' | head -c 12 >"$out/console_password"
echo >>"$out/console_password"
ssh-keygen -q -t ed25519 -N '' -C "corbel $CORBEL_KIND" -f "$out/ssh_key"

debugfs -R 'cat /etc/shadow' "$disk?offset=$root_offset" >"$work/shadow.old" 2>/dev/null
grep -q '^root:' "$work/shadow.old" || die "the disk in the cache is damaged; build again with --no-cache"
CORBEL_PASSWORD_FILE="$out/console_password" perl -e '
    open my $f, "<", $ENV{CORBEL_PASSWORD_FILE} or die; chomp(my $word = <$f>);
    my @set = ("a".."z", "A".."Z", 0..9);
    open my $r, "<:raw", "/dev/urandom" or die; read $r, my $bytes, 16;
    my $salt = join "", map { $set[$_ % @set] } unpack "C*", $bytes;
    my $hash = crypt $word, "\$6\$$salt\$";
    while (<STDIN>) { s/^root:[^:]*:/root:$hash:/; print }' <"$work/shadow.old" >"$work/shadow"

# write FILE PATH MODE GID, as commands for debugfs
replace() {
    printf 'rm %s\nwrite %s %s\nsif %s mode 0100%s\nsif %s uid 0\nsif %s gid %s\n' \
        "$2" "$1" "$2" "$2" "$3" "$2" "$2" "$4"
}

: >"$out/known_hosts"
{
    replace shadow /etc/shadow 640 42
    replace ../ssh_key.pub /root/.ssh/authorized_keys 600 0
    for type in rsa ecdsa ed25519; do
        key=ssh_host_${type}_key
        ssh-keygen -q -t $type -N '' -C root@debian -f "$work/$key"
        replace "$key" "/etc/ssh/$key" 600 0
        replace "$key.pub" "/etc/ssh/$key.pub" 644 0
        # The key the guest will show, so that the first connection is verified too.
        printf '* %s\n' "$(cut -d' ' -f1,2 "$work/$key.pub")" >>"$out/known_hosts"
    done
} >"$work/commands"
# It complains of each file that it is to replace and that is not there yet, and of nothing else.
(cd "$work" && debugfs -w -f commands "$disk?offset=$root_offset") 2>&1 |
    grep -v -e '^debugfs' -e '^Allocated inode' -e '^rm: File not found' || :

# Read back what must be there: debugfs exits 0 whatever happened.
debugfs -R 'cat /root/.ssh/authorized_keys' "$disk?offset=$root_offset" 2>/dev/null |
    cmp -s - "$out/ssh_key.pub" || die "the keys could not be written into the disk; is there room?"
debugfs -R 'cat /etc/shadow' "$disk?offset=$root_offset" 2>/dev/null | cmp -s - "$work/shadow" ||
    die "the password could not be written into the disk; is there room?"
rm -rf "$work"
chmod 644 "$out/known_hosts" "$out/ssh_key.pub" "$out/vmlinuz" "$out/initrd" "$disk"
