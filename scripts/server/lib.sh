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
