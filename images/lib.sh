# What the image builders share: progress, errors, and a private apt that needs no root.
# The caller sets CORBEL_OUT (where the finished files go) and CORBEL_CACHE (kept between builds).

export LC_ALL=C.UTF-8
export PATH="$PATH:/usr/sbin:/sbin"
umask 022

: "${CORBEL_MIRROR:=http://deb.debian.org/debian}"
: "${CORBEL_SECURITY_MIRROR:=http://deb.debian.org/debian-security}"
: "${CORBEL_SUITE:=bookworm}"
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf '%s\n' "$*"; }
step() { printf '==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need PROGRAM PACKAGE: stops with the command that mends it when PROGRAM is absent.
need() {
    command -v "$1" >/dev/null 2>&1 || die "$1 is missing; install it: sudo apt-get install $2"
}

need_keyring() {
    [ -r "$KEYRING" ] ||
        die "$KEYRING is missing; install it: sudo apt-get install debian-archive-keyring"
}

# Signed sources only; the host's own sources are not used, so that any host builds the same guest.
write_sources() {
    cat >"$1" <<EOF
deb [signed-by=$KEYRING] $CORBEL_MIRROR $CORBEL_SUITE main
deb [signed-by=$KEYRING] $CORBEL_MIRROR $CORBEL_SUITE-updates main
deb [signed-by=$KEYRING] $CORBEL_SECURITY_MIRROR $CORBEL_SUITE-security main
EOF
}

# A package tree of our own under the cache: lists, archives and an empty status file. The host's
# apt.conf still applies, because that is where proxies are set.
apt_setup() {
    command -v apt-get >/dev/null 2>&1 ||
        die "apt-get is missing, and with it what images are built with: build on a Debian or Ubuntu host and copy the image's directory, or fetch one (corbel image catalogue)"
    need_keyring
    APT_ROOT=$CORBEL_CACHE/apt-$CORBEL_SUITE
    mkdir -p "$APT_ROOT/lists/partial" "$APT_ROOT/archives/partial" "$APT_ROOT/log"
    : >>"$APT_ROOT/status"
    write_sources "$APT_ROOT/sources.list"
    cat >"$APT_ROOT/apt.conf" <<EOF
Dir::State "$APT_ROOT";
Dir::State::lists "$APT_ROOT/lists";
Dir::State::status "$APT_ROOT/status";
Dir::Cache "$APT_ROOT";
Dir::Cache::archives "$APT_ROOT/archives";
Dir::Log "$APT_ROOT/log";
Dir::Etc::sourcelist "$APT_ROOT/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "$KEYRING";
Dir::Etc::trustedparts "/dev/null";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
EOF
    export APT_CONFIG="$APT_ROOT/apt.conf"
}

apt_update() {
    apt-get -qq update || die "the package lists could not be read from $CORBEL_MIRROR; check the network, or set CORBEL_MIRROR"
}

# fetch_deb PACKAGE: prints the path of its newest .deb in the cache, downloading it when absent.
fetch_deb() {
    fd_version=$(apt-cache show --no-all-versions "$1" | sed -n 's/^Version: //p')
    [ -n "$fd_version" ] || die "no package $1 in $CORBEL_SUITE"
    fd_arch=$(apt-cache show --no-all-versions "$1" | sed -n 's/^Architecture: //p')
    fd_file=$APT_ROOT/archives/$1_$(printf %s "$fd_version" | sed 's/:/%3a/')_$fd_arch.deb
    if [ ! -s "$fd_file" ]; then
        (cd "$APT_ROOT/archives" && apt-get -qq download "$1") >&2 ||
            die "$1 could not be downloaded from $CORBEL_MIRROR; check the network"
    fi
    [ -s "$fd_file" ] || die "$1 was downloaded, but $fd_file is not there"
    printf '%s\n' "$fd_file"
}

# The cloud kernel is a metapackage; prints the name of the package that holds the kernel itself.
kernel_package() {
    apt-cache depends --important linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}
