#!/bin/sh
# Install another wheel beside the one in use, switch over, and switch back unless the service stays healthy.
set -eu
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=firmware_scripts/common.sh
. "$HERE/common.sh"

PYTHON="${PYTHON:-python3}"
PIP_ARGS=
WHEEL=
SHA256=
ROLLBACK=0

usage() {
    cat <<'TEXT'
usage: update.sh --wheel FILE [--sha256 HEX] [--find-links DIR] [--dry-run]
       update.sh --rollback [--dry-run]

  --wheel FILE      the scene_edge wheel to change to
  --sha256 HEX      refuse the wheel unless this is its digest
  --find-links DIR  install from wheels in DIR, without a network
  --rollback        switch back to the environment that was in use before
  --dry-run         show what would be done

Exit status: 0 updated, 1 failed and the old version is in use, 2 usage.
example: sudo ./update.sh --wheel scene_edge-0.2.0-py3-none-any.whl --sha256 9f86d08...
TEXT
}

while [ $# -gt 0 ]; do
    case "$1" in
        --wheel | --sha256 | --find-links)
            [ $# -ge 2 ] || usage_error "$1 needs a value"
            case "$1" in
                --wheel) WHEEL=$2 ;;
                --sha256) SHA256=$2 ;;
                --find-links) PIP_ARGS="--no-index --find-links $2" ;;
            esac
            shift 2
            ;;
        --rollback) ROLLBACK=1; shift ;;
        --dry-run) DRY_RUN=1; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage_error "unknown option $1" ;;
    esac
done

need_root
OLD=$(current_slot)
case "$OLD" in
    a | b) ;;
    *) die "nothing is installed in $PREFIX: run provision.sh first" ;;
esac
NEW=$(other_slot)

# Two updates at once would fill the same slot. The kernel lets go of the lock however this ends.
if [ "$DRY_RUN" != 1 ]; then
    exec 9>"$PREFIX/update.lock"
    flock -n 9 || die "another update is under way"
fi

if [ "$ROLLBACK" = 1 ]; then
    [ -x "$PREFIX/$NEW/bin/scene-edge" ] || die "there is no other version to go back to"
    say "rolling back from slot $OLD to slot $NEW"
    switch_to "$NEW"
    restart_service
    exit 0
fi

[ -n "$WHEEL" ] || usage_error "--wheel is missing"
[ -f "$WHEEL" ] || usage_error "no such wheel: $WHEEL"
if [ -n "$SHA256" ]; then
    GOT=$(sha256sum "$WHEEL" | cut -d' ' -f1)
    [ "$GOT" = "$SHA256" ] || die "$WHEEL has digest $GOT, not $SHA256; nothing was changed"
fi
PROFILE=$(profile_installed)
[ -n "$PROFILE" ] || PROFILE=$(board)

say "installing ${WHEEL##*/} into slot $NEW (in use: $OLD, profile $PROFILE)"
# Not in an if-condition: there the shell would go on after a failed step inside the function.
set +e
(set -e; fill_slot "$NEW" "$WHEEL" "$PROFILE")
STATUS=$?
set -e
if [ "$STATUS" != 0 ]; then
    die "the new version did not install or does not accept the configuration; slot $OLD stays in use"
fi
switch_to "$NEW"
restart_service
if healthy; then
    say "updated: slot $NEW is in use, slot $OLD is kept for --rollback"
    exit 0
fi
switch_to "$OLD"
restart_service
die "the new version did not stay up for $HEALTH_S s; rolled back to slot $OLD"
