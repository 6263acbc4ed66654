"""The operator's own settings, from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class SettingsError(ValueError):
    """An environment variable is missing or wrong; the text names it."""


@dataclass(frozen=True)
class Settings:
    """`namespaces` empty: the whole cluster. `http_port` serves metrics and probes. `taint_nodes`: it may patch nodes.
    `trace`: sidecars log what the protocol does, for replays against the model."""

    sidecar_image: str
    pull_policy: str = "IfNotPresent"
    namespaces: tuple[str, ...] = ()
    http_port: int = 8080
    log_level: str = "INFO"
    taint_nodes: bool = False
    trace: bool = False


def load(env: Mapping[str, str]) -> Settings:
    """Read HOLDFAST_* variables; raises SettingsError."""
    image = env.get("HOLDFAST_SIDECAR_IMAGE", "")
    if not image:
        raise SettingsError("HOLDFAST_SIDECAR_IMAGE is not set: give the image of the checkpoint sidecar")
    policy = env.get("HOLDFAST_SIDECAR_PULL_POLICY", "IfNotPresent")
    if policy not in ("Always", "IfNotPresent", "Never"):
        raise SettingsError(f"HOLDFAST_SIDECAR_PULL_POLICY is {policy!r}: use Always, IfNotPresent or Never")
    port = env.get("HOLDFAST_HTTP_PORT", "8080")
    if not port.isdigit():
        raise SettingsError(f"HOLDFAST_HTTP_PORT is {port!r}: give a port number")
    level = env.get("HOLDFAST_LOG_LEVEL", "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError(f"HOLDFAST_LOG_LEVEL is {level!r}: use DEBUG, INFO, WARNING or ERROR")
    namespaces = tuple(n.strip() for n in env.get("HOLDFAST_NAMESPACES", "").split(",") if n.strip())
    taint, trace = _flag(env, "HOLDFAST_TAINT_NODES"), _flag(env, "HOLDFAST_TRACE")
    return Settings(image, policy, namespaces, int(port), level, taint, trace)


def _flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "false").lower()
    if value not in ("true", "false", "on", "off"):  # helm --set makes a boolean of true, which no variable may be
        raise SettingsError(f"{name} is {value!r}: use true or false")
    return value in ("true", "on")
