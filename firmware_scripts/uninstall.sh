#!/bin/sh
# Take scene-edge off a board. Configuration and state stay unless --purge is given.
set -eu
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=firmware_scripts/common.sh
. "$HERE/common.sh"

PURGE=0

usage() {
    cat <<'TEXT'
usage: uninstall.sh [--purge] [--dry-run]

  --purge    remove configuration, state and the service user too
  --dry-run  show what would be done
TEXT
}

while [ $# -gt 0 ]; do
    case "$1" in
        --purge) PURGE=1; shift ;;
        --dry-run) DRY_RUN=1; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage_error "unknown option $1" ;;
    esac
done

need_root
if [ "$DRY_RUN" = 1 ] || has_systemd; then
    run systemctl disable --now "$SERVICE" || true
fi
run rm -f "$UNIT"
if [ "$DRY_RUN" = 1 ] || has_systemd; then run systemctl daemon-reload; fi
run rm -rf "$PREFIX"
if [ "$PURGE" = 1 ]; then
    run rm -rf "$CONFIG_DIR" "$STATE_DIR"
    if [ -z "$ROOT" ] && id -u "$SERVICE_USER" >/dev/null 2>&1; then run userdel "$SERVICE_USER"; fi
    say "removed, with configuration and state"
else
    say "removed; $CONFIG_DIR and $STATE_DIR were kept (--purge removes them)"
fi
