"""Names of hosts that this process can resolve, or for a while cannot."""

from __future__ import annotations

import socket
from typing import Any

BROKER = "broker.scene-edge.test"


class Names:
    """While in use, BROKER is this machine; with `up` False it is what a resolver says that reaches nobody."""

    def __init__(self) -> None:
        self.up, self.refused = True, 0
        self._ask = socket.getaddrinfo

    def __enter__(self) -> Names:
        socket.getaddrinfo = self._answer  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        socket.getaddrinfo = self._ask

    def _answer(self, host: Any, *arguments: Any, **options: Any) -> Any:
        if host != BROKER:
            return self._ask(host, *arguments, **options)
        if not self.up:
            self.refused += 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._ask("127.0.0.1", *arguments, **options)
