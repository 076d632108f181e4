# Shared by the scripts in this directory. Source it from bash.
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${CROFT_CACHE:-$ROOT/.cache}
mkdir -p "$CACHE"

# rustup's own place, for shells that have not read its profile.
if ! command -v cargo >/dev/null && [ -r "$HOME/.cargo/env" ]; then
    # shellcheck disable=SC1091
    . "$HOME/.cargo/env"
fi

say() { printf '%s\n' "-- $*" >&2; }

die() {
    printf '%s\n' "error: $*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly, or by sudo without a question if there is
# nobody to answer it.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo && [ -t 0 ]; then
        sudo "$@"
    elif have sudo; then
        sudo -n "$@"
    else
        return 1
    fi
}

# Runs the rest of the script alone: others that use the same cache wait.
lock_cache() {
    exec {lock_fd}>"$CACHE/lock"
    flock "$lock_fd"
}

# apt with lists and downloads of its own in the cache: needs no privilege and
# changes nothing outside. The packages' signatures are checked as ever.
private_apt() {
    local program=$1 state=$CACHE/apt
    shift
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    # Hooks of the system's apt clean up the system's cache.
    printf '#clear APT::Update::Post-Invoke%s;\n' "" "-Success" >"$state/config"
    "$program" -qq -c "$state/config" \
        -o Dir::State::lists="$state/lists" \
        -o Dir::Cache="$state" \
        -o APT::Sandbox::User="$(id -un)" \
        "$@" </dev/null
}

# Reads the package lists, at most once a day.
refresh_lists() {
    have apt-get || die "this needs Debian's apt-get; run it on Debian 12"
    local stamp=$CACHE/apt/refreshed
    if [ -z "$(find "$stamp" -mtime -1 2>/dev/null)" ]; then
        say "reading Debian's package lists"
        private_apt apt-get update || die "apt-get update failed; check the network and /etc/apt/sources.list"
        touch "$stamp"
    fi
}

# download PACKAGE: leaves its .deb in the cache and prints the path.
download() {
    local package=$1 where=$CACHE/debs/$1
    if ! compgen -G "$where/*.deb" >/dev/null; then
        refresh_lists
        say "downloading $package"
        local part
        mkdir -p "$CACHE/debs"
        part=$(mktemp -d "$CACHE/debs/.part.XXXXXX")
        # A list may be older than what the archive still has.
        (cd "$part" && private_apt apt-get download "$package") || {
            rm -f "$CACHE/apt/refreshed"
            refresh_lists
            (cd "$part" && private_apt apt-get download "$package") || {
                rm -rf "$part"
                die "cannot download $package; check the network"
            }
        }
        rm -rf "$where"
        mv -T "$part" "$where"
    fi
    compgen -G "$where/*.deb" | head -n 1
}
