"""What Mosquitto needs to let a fleet in and nobody else: its settings and its access list, as text."""

from __future__ import annotations

from pathlib import Path

from scene_edge.codec.topics import PREFIX
from scene_edge.server.fleet import SERVER

PORT = 8883
MAX_PAYLOAD_BYTES = 131_072

CAMERA_WRITES = ("video", "semantic", "status", "birth", "ledger", "state/+")
CAMERA_READS = ("ack", "set/+")
SERVER_READS = ("video", "semantic", "status", "birth", "ledger")
SERVER_WRITES = ("ack", "tracks", "actions")


def access_list() -> str:
    """Each camera its own topics, by the name in its certificate (%u); the server what it takes and gives.

    Nothing else is allowed to anybody. Patterns hold for cameras that are added later too: the broker need not know.
    """
    lines = ["# Written by `scene-edge fleet init`. What is not allowed here is forbidden.", ""]
    lines += [f"pattern write {PREFIX}/+/%u/{leaf}" for leaf in CAMERA_WRITES]
    lines += [f"pattern read {PREFIX}/+/%u/{leaf}" for leaf in CAMERA_READS]
    lines += ["", f"user {SERVER}"]
    lines += [f"topic read {PREFIX}/+/+/{leaf}" for leaf in SERVER_READS]
    lines += [f"topic write {PREFIX}/+/+/{leaf}" for leaf in SERVER_WRITES]
    return "\n".join(lines) + "\n"


def settings(folder: Path, port: int = PORT) -> str:
    """A mosquitto.conf whose files lie in `folder` on the broker's machine."""
    return "\n".join(
        [
            "# Written by `scene-edge fleet init`. Certificates say who is who: no passwords, nobody anonymous.",
            f"listener {port}",
            f"cafile {folder / 'ca.crt'}",
            f"certfile {folder / 'broker.crt'}",
            f"keyfile {folder / 'broker.key'}",
            f"crlfile {folder / 'crl.pem'}",
            "tls_version tlsv1.2",
            "require_certificate true",
            "use_identity_as_username true",
            "# Else one camera could end another's connection by taking its client id.",
            "use_username_as_clientid true",
            "allow_anonymous false",
            f"acl_file {folder / 'acl'}",
            f"message_size_limit {MAX_PAYLOAD_BYTES}",
            "",
        ]
    )


def write_broker_files(folder: Path, etc: Path) -> None:
    """mosquitto.conf and acl into a fleet's broker folder; `etc` is where that folder will lie."""
    (folder / "acl").write_text(access_list(), encoding="utf-8")
    (folder / "mosquitto.conf").write_text(settings(etc), encoding="utf-8")
