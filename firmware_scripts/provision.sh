#!/bin/sh
# Make a board a camera: service user, virtual environment, configuration, systemd unit. Safe to run again.
set -eu
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=firmware_scripts/common.sh
. "$HERE/common.sh"

PYTHON="${PYTHON:-python3}"
PIP_ARGS=
WHEEL=
PROFILE=
CAMERA=
BROKER=
SOURCE=
TLS=
ENROL=0
START=1

usage() {
    cat <<'TEXT'
usage: provision.sh --wheel FILE [options]

  --wheel FILE      the scene_edge wheel to install
  --profile NAME    cpu, intel, jetson, rpi4 or rpi5 (default: what this board is)
  --camera ID       name of the camera (default: the host's name)
  --broker URL      mqtt://HOST:PORT or mqtts://HOST:PORT (default: mqtt://127.0.0.1:1883)
  --source URL      where frames come from (default: picamera2:0 on a Raspberry Pi, else v4l2:/dev/video0)
  --tls DIR         this camera's ca.crt, client.crt and client.key (scene-edge fleet device), copied to /etc/scene-edge/tls
  --enrol           make a key here, and /etc/scene-edge/tls/client.csr for the operator to sign; the key stays here
  --find-links DIR  install from wheels in DIR, without a network
  --no-start        enable the service, but do not start it now
  --dry-run         show what would be done

example: sudo ./provision.sh --wheel scene_edge-0.1.0-py3-none-any.whl --broker mqtts://broker.example:8883
TEXT
}

while [ $# -gt 0 ]; do
    case "$1" in
        --wheel | --profile | --camera | --broker | --source | --tls | --find-links)
            [ $# -ge 2 ] || usage_error "$1 needs a value"
            case "$1" in
                --wheel) WHEEL=$2 ;;
                --profile) PROFILE=$2 ;;
                --camera) CAMERA=$2 ;;
                --broker) BROKER=$2 ;;
                --source) SOURCE=$2 ;;
                --tls) TLS=$2 ;;
                --find-links) PIP_ARGS="--no-index --find-links $2" ;;
            esac
            shift 2
            ;;
        --enrol) ENROL=1; shift ;;
        --no-start) START=0; shift ;;
        --dry-run) DRY_RUN=1; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage_error "unknown option $1" ;;
    esac
done

[ -n "$WHEEL" ] || usage_error "--wheel is missing"
[ -f "$WHEEL" ] || usage_error "no such wheel: $WHEEL"
[ -n "$PROFILE" ] || PROFILE=$(board)
EXTRA=$(extra_of "$PROFILE") || exit $?
[ -n "$CAMERA" ] || CAMERA=$(uname -n | tr -c 'A-Za-z0-9_\n-' '-' | cut -c1-64)
case "$CAMERA" in
    *[!A-Za-z0-9_-]* | '') usage_error "camera '$CAMERA' must be letters, digits, _ and -" ;;
esac
[ -n "$BROKER" ] || BROKER=mqtt://127.0.0.1:1883
case "$BROKER" in
    mqtt://?* | mqtts://?*) ;;
    *) usage_error "broker '$BROKER' must begin with mqtt:// or mqtts://" ;;
esac
if [ -n "$TLS" ]; then
    [ "$ENROL" = 0 ] || usage_error "--tls and --enrol exclude each other"
    for file in ca.crt client.crt; do
        [ -f "$TLS/$file" ] || usage_error "no $file in $TLS"
    done
fi
if [ "$ENROL" = 1 ] || [ -n "$TLS" ]; then
    case "$BROKER" in
        mqtts://*) ;;
        *) usage_error "a certificate needs --broker mqtts://HOST:PORT" ;;
    esac
fi
if [ -z "$SOURCE" ]; then
    case "$PROFILE" in
        rpi*) SOURCE=picamera2:0 ;;
        *) SOURCE=v4l2:/dev/video0 ;;
    esac
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$PYTHON is older than 3.10"
need_root
say "provisioning $CAMERA: profile $PROFILE, engine extra $EXTRA, broker $BROKER, source $SOURCE"

if [ -z "$ROOT" ] && ! id -u "$SERVICE_USER" >/dev/null 2>&1; then
    run useradd --system --home-dir "$STATE_DIR" --shell /usr/sbin/nologin "$SERVICE_USER"
fi
if [ -z "$ROOT" ]; then
    for group in video render; do
        if getent group "$group" >/dev/null 2>&1; then run usermod -aG "$group" "$SERVICE_USER"; fi
    done
fi
run mkdir -p "$PREFIX" "$CONFIG_DIR" "$STATE_DIR" "$(dirname "$UNIT")"

TLS_KEYS=
if [ "$ENROL" = 1 ] || [ -n "$TLS" ]; then
    TLS_KEYS="
  ca_file: /etc/scene-edge/tls/ca.crt
  cert_file: /etc/scene-edge/tls/client.crt
  key_file: /etc/scene-edge/tls/client.key"
fi
if [ ! -e "$CONFIG_DIR/camera.yaml" ]; then
    write_file "$CONFIG_DIR/camera.yaml" 640 <<TEXT
# This camera. All keys with their meaning: scene-edge validate --schema
camera: $CAMERA
source:
  url: "$SOURCE"
mqtt:
  broker: "$BROKER"$TLS_KEYS
spool:
  path: /var/lib/scene-edge/spool
bundles:
  # With public_key_file: which counter of each bundle was in use, so that no older one takes its place.
  counters_file: /var/lib/scene-edge/bundles.json
TEXT
fi
if [ -n "$TLS" ]; then
    run mkdir -p "$CONFIG_DIR/tls"
    for file in ca.crt client.crt client.key; do
        # Without a key in it, the folder brings the certificate for a key that was made here by --enrol.
        if [ -f "$TLS/$file" ]; then run install -m 640 "$TLS/$file" "$CONFIG_DIR/tls/$file"; fi
    done
fi
write_file "$CONFIG_DIR/environment" 640 <<TEXT
# Read by scene-edge.service. Secrets belong here rather than in camera.yaml: SCENE_EDGE_MQTT__PASSWORD=...
SCENE_EDGE_PROFILE=$PROFILE
$(sed -n '/^SCENE_EDGE_PROFILE=/d; /^[A-Z]/p' "$CONFIG_DIR/environment" 2>/dev/null || true)
TEXT
if [ -z "$ROOT" ]; then run chown -R "$SERVICE_USER:$SERVICE_USER" "$STATE_DIR"; fi

SLOT=$(other_slot)
fill_slot "$SLOT" "$WHEEL" "$PROFILE"
if [ "$ENROL" = 1 ] && [ ! -e "$CONFIG_DIR/tls/client.key" ]; then
    run "$PREFIX/$SLOT/bin/scene-edge" fleet request "$CAMERA" --out "$CONFIG_DIR/tls"
    run chmod 750 "$CONFIG_DIR/tls"
    run chmod 640 "$CONFIG_DIR/tls/client.key"
fi
# Last, so that the service may read whatever was put there, and nobody else.
if [ -z "$ROOT" ]; then run chgrp -R "$SERVICE_USER" "$CONFIG_DIR"; fi
switch_to "$SLOT"
write_file "$UNIT" 644 <"$HERE/scene-edge.service"
if [ "$DRY_RUN" = 1 ] || has_systemd; then
    run systemctl daemon-reload
    run systemctl enable "$SERVICE"
    [ "$START" = 0 ] || restart_service
fi
say "done: $PREFIX/current/bin/scene-edge doctor says what this board can do"
