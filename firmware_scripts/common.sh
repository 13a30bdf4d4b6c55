# Shared by the scripts beside it, never run itself: where things live, how to say and do them, what board this is.
# shellcheck shell=sh

# SCENE_EDGE_ROOT puts everything under another folder, for images that are built on another machine, and for tests.
ROOT="${SCENE_EDGE_ROOT:-}"
PREFIX="$ROOT/opt/scene-edge"        # slots a and b, each a virtual environment; `current` points at one of them
CONFIG_DIR="$ROOT/etc/scene-edge"
STATE_DIR="$ROOT/var/lib/scene-edge"
UNIT="$ROOT/etc/systemd/system/scene-edge.service"
SERVICE=scene-edge
SERVICE_USER=scene-edge
DRY_RUN="${DRY_RUN:-0}"
HEALTH_S="${SCENE_EDGE_HEALTH_S:-30}"

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
usage_error() { printf '%s: %s; see --help\n' "${0##*/}" "$*" >&2; exit 2; }

# Run a command, or with --dry-run only show it.
run() {
    if [ "$DRY_RUN" = 1 ]; then
        say "+ $*"
    else
        "$@"
    fi
}

# Write standard input to a file with a mode, whole or not at all.
write_file() { # PATH MODE
    if [ "$DRY_RUN" = 1 ]; then
        say "+ write $1 (mode $2)"
        sed 's/^/  | /'
        return
    fi
    (umask 077 && cat >"$1.new")  # it may hold a password, before chmod too
    chmod "$2" "$1.new"
    sync "$1.new"
    mv -f "$1.new" "$1"
}

need_root() {
    [ "$DRY_RUN" = 1 ] || [ -n "$ROOT" ] || [ "$(id -u)" = 0 ] || die "must be run as root (or with --dry-run)"
}

has_systemd() { [ -z "$ROOT" ] && [ -d /run/systemd/system ]; }

# The profile of this board, by what its firmware says.
board() {
    model=$(cat "$ROOT/proc/device-tree/model" 2>/dev/null | tr -d '\0')
    case "$model" in
        *"Raspberry Pi 5"* | *"Compute Module 5"*) say rpi5 ;;
        *"Raspberry Pi 4"* | *"Compute Module 4"*) say rpi4 ;;
        *Jetson* | *Orin* | *Xavier*) say jetson ;;
        *)
            if [ "$(uname -m)" = x86_64 ] && ls "$ROOT"/dev/dri/renderD* >/dev/null 2>&1 \
                && grep -qi '^vendor_id.*GenuineIntel' "$ROOT/proc/cpuinfo" 2>/dev/null; then
                say intel
            else
                say cpu
            fi
            ;;
    esac
}

# The extra with the inference engine that suits a profile.
extra_of() {
    case "$1" in
        rpi4 | rpi5) say litert ;;
        jetson) say onnx ;;
        intel | cpu) say openvino ;;
        *) usage_error "unknown profile '$1' (allowed: cpu, intel, jetson, rpi4, rpi5)" ;;
    esac
}

# libcamera and GStreamer's Python bindings come from the system on these boards.
venv_options_of() {
    case "$1" in
        rpi4 | rpi5 | jetson) say --system-site-packages ;;
    esac
}

profile_installed() {
    sed -n 's/^SCENE_EDGE_PROFILE=//p' "$CONFIG_DIR/environment" 2>/dev/null || true
}

current_slot() {
    slot=$(readlink "$PREFIX/current" 2>/dev/null || true)
    say "${slot##*/}"
}

other_slot() { if [ "$(current_slot)" = a ]; then say b; else say a; fi; }

# A fresh environment in a slot, with the wheel and its engine in it. Fails without touching the slot in use.
fill_slot() { # SLOT WHEEL PROFILE
    run rm -rf "$PREFIX/$1"
    options=$(venv_options_of "$3")
    # shellcheck disable=SC2086 # no option, or one
    run "$PYTHON" -m venv $options "$PREFIX/$1"
    run "$PREFIX/$1/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} "$2[$(extra_of "$3")]"
    run "$PREFIX/$1/bin/scene-edge" version
    if [ -e "$CONFIG_DIR/camera.yaml" ]; then
        run "$PREFIX/$1/bin/scene-edge" validate "$CONFIG_DIR/camera.yaml"
    fi
}

# `current` is replaced in one step: at every moment it points at a whole environment, also after a power cut.
switch_to() { # SLOT
    run sync
    run ln -sfn "$1" "$PREFIX/current.new"
    run mv -Tf "$PREFIX/current.new" "$PREFIX/current"
}

restart_service() {
    if [ "$DRY_RUN" = 1 ] || has_systemd; then
        run systemctl restart "$SERVICE"
    fi
}

# Healthy: the service has stayed up for HEALTH_S without a restart. SCENE_EDGE_HEALTH_COMMAND replaces this.
healthy() {
    if [ "$DRY_RUN" = 1 ]; then
        say "+ wait $HEALTH_S s for $SERVICE to stay up"
        return 0
    fi
    if [ -n "${SCENE_EDGE_HEALTH_COMMAND:-}" ]; then
        sh -c "$SCENE_EDGE_HEALTH_COMMAND"
        return
    fi
    has_systemd || return 0
    before=$(systemctl show -p NRestarts --value "$SERVICE")
    sleep "$HEALTH_S"
    systemctl is-active --quiet "$SERVICE" && [ "$(systemctl show -p NRestarts --value "$SERVICE")" = "$before" ]
}
