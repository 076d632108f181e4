# What the checks of a whole server share. Source it from bash.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

CROFT=${CARGO_TARGET_DIR:-$ROOT/target}/release/croft
# Instances of the checks are apart from the user's; images are built once and
# kept in the cache.
export CROFT_DATA_DIR=$CACHE/server
IMAGE=${CROFT_IMAGE:-debian:12}
# Longest time that anything in a guest may take, in seconds.
PATIENCE=600

croft() { timeout --foreground "$PATIENCE" "$CROFT" "$@"; }

# The image, from the distribution's packages, where it is not there yet or
# older than this Croft.
need_image() {
    croft image build --if-needed "$IMAGE" >&2
}

# in_guest INSTANCE SHELL-COMMAND
in_guest() { croft exec "$1" -- sh -c "$2"; }

# guest_packages INSTANCE PACKAGE...: downloads, into the cache, those of the
# packages that the guest does not have, and what they need there; prints their
# paths. The guest needs no network.
guest_packages() {
    local instance=$1 into=$CACHE/guest-packages state wanted name
    shift
    refresh_lists
    state=$(mktemp -d)
    mkdir -p "$state/none/partial" "$into/partial"
    in_guest "$instance" 'cat /var/lib/dpkg/status' >"$state/status"
    wanted=(apt-get -o Dir::State::status="$state/status" --no-install-recommends --yes)
    # All that it would fetch if there were nothing.
    private_apt "${wanted[@]}" -o Dir::Cache::archives="$state/none" --print-uris install "$@" |
        awk '{print $2}' >"$state/names" &&
        private_apt "${wanted[@]}" -o Dir::Cache::archives="$into" --download-only install "$@" >&2 ||
        die "cannot download $*; check the network"
    while read -r name; do
        [ -s "$into/$name" ] || die "$into/$name is missing"
        printf '%s\n' "$into/$name"
    done <"$state/names"
    rm -rf "$state"
}

# delete_at_end INSTANCE...: deletes what a check made, however it ends.
delete_at_end() {
    # shellcheck disable=SC2064
    trap "delete_all $*" EXIT
}

delete_all() {
    local instance
    for instance in "$@"; do
        "$CROFT" delete --force "$instance" >/dev/null 2>&1 || true
    done
    [ -z "${scratch:-}" ] || rm -rf "$scratch"
}
