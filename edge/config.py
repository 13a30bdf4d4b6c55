"""What a camera can be told: frozen, validated settings, each with its meaning. Where they come from: settings.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from scene_edge.codec.bundle import read_public_key

EngineName = Literal["auto", "openvino", "onnx", "litert", "tensorrt"]
USUAL_ENGINES = ("openvino", "onnx", "litert")
EncoderName = Literal["auto", "libx264", "h264_qsv", "h264_v4l2m2m", "nvv4l2h264enc"]
ProfileName = Literal["auto", "cpu", "intel", "jetson", "rpi4", "rpi5"]

PROFILES: tuple[str, ...] = ("auto", "cpu", "intel", "jetson", "rpi4", "rpi5")

Side = Annotated[int, Field(ge=32, le=8192)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(Section):
    """Where the frames come from."""

    url: str = Field(
        "testsrc:",
        min_length=1,
        description="A file path, testsrc:, rtsp://..., v4l2:/dev/video0 or picamera2:0.",
    )
    pace: Literal["realtime", "steady", "asap"] = Field(
        "realtime",
        description="Files and testsrc: realtime plays at the recorded rate and drops what does not fit, as a live "
        "camera does; asap goes as fast as the pipeline takes frames and loses none; steady is asap, but never faster "
        "than the recorded rate.",
    )
    loop: bool = Field(False, description="Start a file again at its end.")
    width: Side = Field(1280, description="Width asked of testsrc, v4l2 and picamera2; other sources bring their own.")
    height: Side = Field(720, description="Height asked of testsrc, v4l2 and picamera2.")
    fps: float = Field(30.0, gt=0, le=240, description="Frame rate asked of testsrc, v4l2 and picamera2.")


class NetworkConfig(Section):
    """How one network runs on this board."""

    enabled: bool = Field(True, description="false leaves this part out.")
    bundle: str = Field(..., min_length=1, description="A shipped bundle's name, or the path of a bundle folder.")
    engines: tuple[EngineName, ...] = Field(
        ("auto", "openvino", "onnx", "litert"),
        min_length=1,
        description="Inference engines in the order to try them. auto, which comes first, is what scene-edge bench "
        "found fastest on this board; the rest serve where it has not run.",
    )
    precision: Literal["int8", "fp16", "bf16", "fp32"] = Field(
        "int8", description="Arithmetic of the network, where bench has not found another to be faster."
    )
    threads: int | None = Field(None, ge=1, le=64, description="Inference threads; null: two.")

    @field_validator("engines")
    @classmethod
    def _auto_first(cls, value: tuple[EngineName, ...]) -> tuple[EngineName, ...]:
        if "auto" in value[1:]:
            raise ValueError("auto comes first: what follows is for a board that bench has not measured")
        return value

    @property
    def named_engines(self) -> tuple[str, ...]:
        """The engines in their order, without auto; auto alone stands before the usual ones."""
        return tuple(name for name in self.engines if name != "auto") or USUAL_ENGINES


SCENE_BUNDLES: Mapping[str, str] = MappingProxyType({"human": "scene-s", "machine": "scene-machine"})
"""The bundles that ship, by whom they are for."""


class SceneConfig(NetworkConfig):
    """SCENE, the filter before the H.264 encoder."""

    weights: Literal["human", "machine"] = Field(
        "human",
        description="Whom the filter is for. human: detail that people see, and fewer bits. machine: detail where "
        "something is that a task needs, and coarse pictures elsewhere, for detectors and trackers; nothing up to "
        "a video.crf of 27, where pictures are good enough.",
    )
    bundle: str = Field(
        SCENE_BUNDLES["human"],
        min_length=1,
        description="A bundle's name or folder, in place of the one that ships for these weights.",
    )
    floor: float = Field(
        0.0,
        ge=0,
        le=1,
        description="machine: the part of fine detail that is kept even where nothing is. 0 leaves a coarse picture "
        "there, 1 filters nothing.",
    )
    max_rise: float | None = Field(
        0.02,
        gt=0,
        le=1,
        description="By which part SCENE may raise the bitrate at equal quality; it is weakened where it would by "
        "more. null: never; nor is it where the encoder holds a bitrate.",
    )

    @model_validator(mode="before")
    @classmethod
    def _shipped(cls, values: Any) -> Any:
        """The bundle that ships for the weights, where none is named."""
        if isinstance(values, dict) and "bundle" not in values and values.get("weights") in SCENE_BUNDLES:
            return {**values, "bundle": SCENE_BUNDLES[values["weights"]]}
        return values


class SemanticsConfig(NetworkConfig):
    """SMC, the semantic stream beside the video."""

    bundle: str = Field("smc-s", min_length=1, description="A shipped bundle's name, or a bundle folder.")
    quality: Annotated[int, Field(ge=0, le=15)] | Literal["auto"] = Field(
        "auto",
        description="Index into the bundle's quality steps, or auto: the finest that keeps within `max_share`, GOP by "
        "GOP, and silence where none does.",
    )
    max_share: float = Field(
        0.02, gt=0, le=1, description="auto: semantic packets take at most this share of the bytes of the H.264 stream."
    )
    max_latency_ms: int | None = Field(
        None, ge=1, le=10_000, description="Send a packet after this much video at the latest; null: one for each GOP."
    )


class VideoConfig(Section):
    """The H.264 stream."""

    encoder: EncoderName = Field("auto", description="auto takes the first of `candidates` that passes a trial encode.")
    candidates: tuple[EncoderName, ...] = Field(("libx264",), min_length=1, description="Encoders in order, for auto.")
    crf: int = Field(26, ge=0, le=51, description="Constant quality, used where bitrate_kbps is null.")
    bitrate_kbps: int | None = Field(None, ge=8, le=100_000, description="Target rate; null: constant quality.")
    gop: int = Field(30, ge=1, le=300, description="Frames from one keyframe to the next, always the same number.")
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"] = Field(
        "superfast", description="Speed of libx264."
    )
    tune: Literal["human", "machine"] = Field(
        "human",
        description="Whom libx264 spends bits for: eyes, which see plain areas suffer first (adaptive quantisation), "
        "or detectors, which want busy ones as well. At the same crf machine takes up to half as many again.",
    )
    width: Side | None = Field(None, description="Wider pictures are scaled down to this width; null keeps them.")
    threads: int | None = Field(None, ge=1, le=64, description="Threads of libx264; null: one for each core, up to 4.")
    sei: Literal["keyframe", "every", "off"] = Field(
        "keyframe", description="Which access units carry the identity (session, number, time) as SEI."
    )

    @field_validator("candidates")
    @classmethod
    def _no_auto(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "auto" in value:
            raise ValueError("candidates must name encoders, not auto")
        return value


class MqttConfig(Section):
    """The broker, and how hard to try to reach it."""

    broker: str = Field("mqtt://127.0.0.1:1883", description="mqtt://host[:port], or mqtts:// for TLS.")
    qos: Literal[0, 1] = Field(1, description="Quality of service of video and semantics.")
    keepalive_s: int = Field(30, ge=2, le=3600, description="The broker declares the camera offline after 1.5 of this.")
    username: str | None = Field(None, description="User name at the broker.")
    password: SecretStr | None = Field(None, description="Password; better from SCENE_EDGE_MQTT__PASSWORD.")
    ca_file: Path | None = Field(
        None, description="Authority that signed the broker's certificate; null: the system's."
    )
    cert_file: Path | None = Field(None, description="This camera's certificate.")
    key_file: Path | None = Field(None, description="This camera's private key.")
    backoff_base_ms: int = Field(500, ge=10, le=60_000, description="First reconnect waits 0 to this, at random.")
    backoff_cap_ms: int = Field(30_000, ge=10, le=3_600_000, description="No wait is longer than this.")
    video_batch_ms: int = Field(
        200,
        ge=0,
        le=10_000,
        description="So much video of a live source goes into one message, which delays its first picture by as much; "
        "0: every picture alone, at once. Sources that can wait send up to a whole GOP in one, unless this is 0.",
    )
    window: int = Field(64, ge=1, le=1024, description="Messages under way to the broker at a time.")
    max_message_bytes: int = Field(
        131_072,
        ge=1024,
        le=131_072,
        description="The largest payload that the broker takes (mosquitto: max_packet_size, less 100). Video is split "
        "to fit; what does not fit all the same goes into quarantine.",
    )
    resend_after_s: float = Field(15.0, gt=0, le=3600, description="Send again what the server left unacknowledged.")
    drain_s: float = Field(
        20.0, ge=0, le=3600, description="At the end, give up once the server has been silent for so long."
    )

    @field_validator("broker")
    @classmethod
    def _broker_url(cls, value: str) -> str:
        broker_address(value)
        return value

    @model_validator(mode="after")
    def _pairs(self) -> MqttConfig:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        return self


class QueueConfig(Section):
    """How many frames may wait before each stage."""

    scene: int = Field(8, ge=1, le=1000, description="Captured frames before the filter.")
    encode: int = Field(8, ge=1, le=1000, description="Filtered frames before the encoder.")
    semantics: int = Field(24, ge=1, le=2000, description="Encoded frames before the semantic encoder.")


class SpoolConfig(Section):
    """What waits on the camera until the server has committed it."""

    path: Path | None = Field(
        None, description="Folder of the file that outlives the process, CAMERA.sqlite; null: in memory alone."
    )
    max_mb: float = Field(
        64.0,
        gt=0,
        le=1_000_000,
        description="Payloads at most, in 10^6 bytes; a file takes up to a fifth more. When it is full, a live camera "
        "drops what is new, by whole GOPs (spool_full), and a source that can wait waits; what is there is kept.",
    )
    memory_mb: float = Field(
        64.0,
        gt=0,
        le=65_536,
        description="With a path: how much of it may be in memory while the file cannot be written.",
    )
    max_age_h: float = Field(
        24.0, gt=0, le=8760, description="What has waited for longer is dropped, oldest first (too_old)."
    )


class WatchdogConfig(Section):
    stall_s: float = Field(10.0, gt=0, le=3600, description="Frames go in and none comes out for so long: a stall.")
    hang_s: float = Field(
        5.0,
        gt=0,
        le=600,
        description="A network that does not answer for so long hangs: the stream goes on without it, and it is opened "
        "anew. After five failures within a minute it stays away.",
    )


class BundlesConfig(Section):
    """Where model bundles are, and whose signature they must bear."""

    zoo: Path | None = Field(None, description="Folder in which bundle names are looked up; null: the shipped ones.")
    public_key_file: Path | None = Field(
        None, description="Raw or hexadecimal Ed25519 key: every bundle must be signed by it. null: digests only."
    )
    counters_file: Path | None = Field(
        None,
        description="With a key: file that remembers the counter of each bundle that ran, so that none with a lower "
        "one opens any more; null: an old bundle with a good signature opens.",
    )


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")
    format: Literal["console", "json"] = Field("console", description="For people, or for machines.")


class CameraConfig(Section):
    """All settings of one camera."""

    camera: str = Field("camera-1", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Name in MQTT topics.")
    profile: ProfileName = Field("cpu", description="The board's profile that these settings started from.")
    source: SourceConfig = Field(default_factory=SourceConfig)
    scene: SceneConfig = Field(default_factory=SceneConfig)
    video: VideoConfig = Field(default_factory=VideoConfig)
    semantics: SemanticsConfig = Field(default_factory=SemanticsConfig)
    mqtt: MqttConfig = Field(default_factory=MqttConfig)
    queues: QueueConfig = Field(default_factory=QueueConfig)
    spool: SpoolConfig = Field(default_factory=SpoolConfig)
    watchdog: WatchdogConfig = Field(default_factory=WatchdogConfig)
    bundles: BundlesConfig = Field(default_factory=BundlesConfig)
    log: LogConfig = Field(default_factory=LogConfig)


def broker_address(url: str) -> tuple[str, int, bool]:
    """mqtt://host:1883 -> (host, port, TLS or not). Raises ValueError with what is allowed."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"broker URL {without_password(url)!r} does not parse: {error}") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError("broker must be mqtt://host[:port] or mqtts://host[:port]")
    if parts.username or parts.password:
        raise ValueError("broker URL must not hold a password: use mqtt.username and mqtt.password")
    tls = parts.scheme == "mqtts"
    return parts.hostname, port or (8883 if tls else 1883), tls


def in_the_clear(url: str) -> bool:
    """Whether a broker's URL sends everything unencrypted over a network.

    >>> [in_the_clear(url) for url in ("mqtt://broker", "mqtt://127.0.0.1:1883", "mqtts://broker")]
    [True, False, False]
    """
    host, _, tls = broker_address(url)
    return not (tls or host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host))


def public_key_of(config: CameraConfig) -> bytes | None:
    """The 32 bytes of the configured bundle key, or None. Raises OSError or ValueError where the file is no key."""
    path = config.bundles.public_key_file
    return None if path is None else read_public_key(path)


def without_password(url: str) -> str:
    """A URL as it may be shown.

    >>> without_password("rtsp://admin:1234@10.0.0.7/live")
    'rtsp://***@10.0.0.7/live'
    """
    # Up to the last @, since a password may hold one, or a slash: rather too much than a part of it.
    masked = re.sub(r"//.*@", "//***@", url)
    return re.sub(r"(?i)([?&](?:pass\w*|pwd|token|secret|key)=)[^&]*", r"\1***", masked)


def shown(config: CameraConfig) -> dict[str, Any]:
    """All settings as plain values, as they may be shown: secrets are `***`."""
    values = config.model_dump(mode="json")
    values["source"]["url"] = without_password(config.source.url)
    if config.mqtt.password is not None:
        values["mqtt"]["password"] = "***"
    return values
