"""`scene-edge fleet`: certificates and broker files, for the operator; `request` alone runs on a camera."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scene_edge.codec.errors import ConfigError
from scene_edge.server.fleet import DEVICE_DAYS, Fleet, make_request
from scene_edge.server.fleet_broker import write_broker_files

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The fleet's folder. Keep it off the network.")]
NameArgument = Annotated[str, typer.Argument(metavar="CAMERA", help="Camera id: [A-Za-z0-9_-]{1,64}.")]


def fleet_app() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=False,
        rich_markup_mode=None,
        help="One identity for each camera: an authority, its certificates, and the broker's settings.",
        epilog="Example: scene-edge fleet init fleet --broker broker.example",
    )
    for function in (init, device, request, revoke, show):
        app.command("list" if function is show else None)(function)
    return app


def init(
    folder: FolderArgument,
    broker: Annotated[str, typer.Option(metavar="HOST", help="Name or address under which cameras reach the broker.")],
    etc: Annotated[Path, typer.Option(help="Where the broker's files will lie.")] = Path("/etc/mosquitto/scene-edge"),
) -> None:
    """Begin a fleet: authority, the broker's and the server's certificates, mosquitto.conf, access list.

    Example: scene-edge fleet init fleet --broker broker.example
    """
    Fleet.create(folder, broker)
    write_broker_files(folder / "broker", etc)
    typer.echo(f"{folder}/broker: copy it to {etc} on the broker, include mosquitto.conf there")
    typer.echo(f"{folder}/server: for scene-edge serve (broker.ca_file, cert_file, key_file)")
    typer.echo(f"{folder}/ca: whoever reads ca.key can be any camera")


def device(
    folder: FolderArgument,
    camera: NameArgument,
    csr: Annotated[Path | None, typer.Option(help="The camera's own request; its key never leaves it.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificate is good.")] = DEVICE_DAYS,
) -> None:
    """Give a camera its certificate.

    Example: scene-edge fleet device fleet gate-1 --csr client.csr
    """
    try:
        asked = csr.read_bytes() if csr is not None else None
    except OSError as error:
        raise ConfigError(f"cannot read {csr}", got=error.strerror) from error
    typer.echo(f"{Fleet.open(folder).add_device(camera, asked, days=days)}: copy it to /etc/scene-edge/tls on {camera}")


def request(
    camera: NameArgument,
    out: Annotated[Path, typer.Option(help="Folder of the key.")] = Path("/etc/scene-edge/tls"),
) -> None:
    """On a camera: make its private key, and the request that the operator signs with `fleet device --csr`.

    Example: scene-edge fleet request gate-1 --out /etc/scene-edge/tls
    """
    typer.echo(str(make_request(camera, out)))


def revoke(folder: FolderArgument, camera: NameArgument) -> None:
    """Take a camera's certificate back. The broker must get broker/crl.pem; a restart ends open connections too.

    Example: scene-edge fleet revoke fleet gate-1
    """
    Fleet.open(folder).revoke(camera)
    typer.echo(f"{folder}/broker/crl.pem: copy it to the broker, then restart mosquitto")


def show(folder: FolderArgument) -> None:
    """Every certificate that was handed out.

    Example: scene-edge fleet list fleet
    """
    table = Table("name", "role", "good until", "revoked", "serial")
    for entry in Fleet.open(folder).issued:
        table.add_row(entry.name, entry.role, entry.not_after, entry.revoked or "", entry.serial[:16])
    Console().print(table)
