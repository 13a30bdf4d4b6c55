"""What a message costs on the line: MQTT 3.1.1 headers exactly, TCP/IP and TLS by their fixed sizes.

Counted: the PUBLISH packet, its PUBACK at QoS 1, 40 bytes of TCP and IPv4 header for each segment of 1448 bytes (an
Ethernet's, with time stamps) and for the PUBACK, and 22 bytes for each TLS 1.3 record of at most 16 KB. Not counted:
link-layer framing, bare TCP acknowledgements, retransmissions by TCP, keep-alive pings, and the handshakes.
"""

from __future__ import annotations

SEGMENT_BYTES = 1448
TCP_IP_BYTES = 40
TLS_RECORD_BYTES = 16_384
TLS_OVERHEAD_BYTES = 22
PUBACK_BYTES = 4


def publish_overhead(topic: str, payload_bytes: int, qos: int, *, tls: bool) -> int:
    """Every byte of a message but its payload.

    >>> publish_overhead("scene/1/167/gate-1/semantic", 200, 1, tls=False)
    118
    """
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + payload_bytes
    length_bytes = 1 + sum(remaining >= 128**power for power in (1, 2, 3))
    packet = 1 + length_bytes + remaining
    total = on_the_line(packet, tls=tls)
    if qos:
        total += on_the_line(PUBACK_BYTES, tls=tls)
    return total - payload_bytes


def on_the_line(packet_bytes: int, *, tls: bool) -> int:
    """An MQTT packet's bytes with TLS and TCP/IP around it."""
    if tls:
        packet_bytes += TLS_OVERHEAD_BYTES * -(-packet_bytes // TLS_RECORD_BYTES)
    return packet_bytes + TCP_IP_BYTES * -(-packet_bytes // SEGMENT_BYTES)
