# What the checks of a whole server share. Source it from bash.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

BUILT=${CARGO_TARGET_DIR:-$ROOT/target}/release
CROFT=$BUILT/croft
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

# need_tests: builds the tests in TESTS, three words each: a package, which of
# its test programs (all without a name), and which part of those. Prints a
# line for each: name, program, part.
need_tests() {
    local messages=$scratch/messages packages=() i package test program
    for ((i = 0; i < ${#TESTS[@]}; i += 3)); do packages+=(-p "${TESTS[i]}"); done
    # One JSON object a line; those of test binaries name an executable.
    (cd "$ROOT" && cargo test --release --no-run --message-format=json "${packages[@]}") >"$messages"
    sed -n 's/.*"package_id":"[^"]*\/\([a-z-]*\)#.*"target":{.*"name":"\([^"]*\)".*"executable":"\([^"]*\/deps\/[^"]*\)".*/\1 \2 \3/p' \
        "$messages" |
        while read -r package test program; do
            for ((i = 0; i < ${#TESTS[@]}; i += 3)); do
                [ "croft-${package#croft-}" = "${TESTS[i]}" ] || [ "$package" = "${TESTS[i]}" ] || continue
                [ -z "${TESTS[i + 1]}" ] || [ "$test" = "${TESTS[i + 1]}" ] || continue
                echo "$package-$test $program ${TESTS[i + 2]}"
            done
        done | grep . || die "cargo named no test binary"
}

# run_with_tests INSTANCE ARGUMENT...: a machine of the image in which the
# programs and files of the tests are where they were built, since their paths
# are in them.
run_with_tests() {
    local instance=$1
    shift
    croft run --detach "$IMAGE" --name "$instance" "$@" --share "$ROOT:source,readonly" \
        --share "$BUILT:programs,readonly" --share "$CACHE:cache,readonly" >/dev/null
    croft wait "$instance" >&2
    in_guest "$instance" "
        set -e
        mount_share() { mkdir -p \"\$2\"; mount -t virtiofs -o ro \"\$1\" \"\$2\"; }
        mount_share source '$ROOT'
        mount_share programs '$BUILT'
        mount_share cache '$CACHE'
    "
}

# run_tests INSTANCE TESTS ARGUMENTS: runs what need_tests has printed to the
# file TESTS, with further arguments, and says which failed.
run_tests() {
    # Seconds for one program of tests; the guest is several times slower.
    local longest=1800 status=0 test program part
    local PATIENCE=$longest
    while read -r test program part <&3; do
        say "$test"
        in_guest "$1" "cd '$ROOT' && timeout $longest '$program' --test-threads=1 $part $3" </dev/null || {
            say "$test: FAILED"
            status=1
        }
    done 3<"$2"
    return $status
}

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
