"""The docker runtime as data: what must be in a container, and what never."""

from __future__ import annotations

import json
from typing import Any

import pytest
from longhaul.deploy.runtimes.container import as_options, container_from, create_body, size_bytes
from longhaul.deploy.runtimes.docker_api import demultiplex, find_image
from longhaul.deploy.spec import render_spec
from longhaul.engines.settings import settings_from
from longhaul.errors import UserError
from support.paths import ROOT

DIGEST = "sha256:" + "a" * 64
LAUNCHER = ROOT / "roles" / "engine" / "files" / "launch.py"


def options(**more: Any) -> dict[str, Any]:
    return {"image": "vllm/vllm-openai:v0.12.0", "digest": DIGEST, "cache_dir": "/opt/longhaul/cache/vllm", **more}


def body(
    engine: str = "vllm", version: str = "0.12.0", container: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    chosen = settings_from(
        {
            "model_path": "/data/models/scout",
            "served_model_name": "scout",
            "context_tokens": 2097152,
            "api_key_file": "/etc/longhaul/key",
            **settings,
        }
    )
    spec = render_spec(
        engine, version, "docker", chosen, instance="default", python="python3",
        container=as_options(container_from(container or options())),
    )  # fmt: skip
    return create_body(
        spec, endpoint="/opt/longhaul", spec_file="/opt/longhaul/spec/containers/x.json", launcher="/opt/longhaul/bin/l"
    )


def test_a_spec_on_disk_reads_back_to_the_same_container() -> None:
    settings = container_from(options(gpus=[0, 1], ulimits={"memlock": "-1"}, mounts=["/a:/b:rw"], health_tolerance_s="7200"))
    assert container_from(json.loads(json.dumps(as_options(settings)))) == settings
    assert settings.gpus == ("0", "1")
    assert settings.health_tolerance_s == 7200


@pytest.mark.parametrize(("engine", "version"), [("vllm", "0.12.0"), ("sglang", "0.5.6.post2")])
def test_what_every_container_has(engine: str, version: str) -> None:
    made = body(engine, version)
    host = made["HostConfig"]
    assert made["Image"] == f"vllm/vllm-openai:v0.12.0@{DIGEST}"
    assert made["Entrypoint"][0] == "python3"
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"]["max-size"] == "100m"
    mounts = {m["Target"]: m for m in host["Mounts"]}
    assert mounts["/data/models/scout"]["ReadOnly"] is True
    assert mounts["/etc/longhaul/key"]["ReadOnly"] is True
    # On the host and named after the engine alone: an upgrade finds what its predecessor compiled.
    assert mounts["/root/.cache"]["Source"] == "/opt/longhaul/cache/vllm/cache"
    assert mounts["/root/.cache"]["ReadOnly"] is False


def test_a_long_prefill_is_not_unhealthy() -> None:
    check = body()["Healthcheck"]
    assert check["Interval"] / 1e9 * check["Retries"] >= 20 * 60
    assert check["StartPeriod"] / 1e9 >= 20 * 60


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]),
        ({"gpus": [2, 3]}, [{"Driver": "nvidia", "DeviceIDs": ["2", "3"], "Capabilities": [["gpu"]]}]),
        ({"gpu_access": "cdi"}, [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]),
        ({"gpu_access": "cdi", "gpus": [1]}, [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}]),
        ({"gpu_access": "none"}, []),
    ],
)
def test_gpus(more: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    assert body(container=options(**more))["HostConfig"]["DeviceRequests"] == wanted


def test_a_cpu_engine_asks_for_no_gpu() -> None:
    assert body(device="cpu")["HostConfig"]["DeviceRequests"] == []


def test_shared_memory_is_a_size_only_when_it_is_not_the_hosts() -> None:
    assert body(container=options(ipc="private", shm_size="128g"))["HostConfig"]["ShmSize"] == 128 << 30
    assert "ShmSize" not in body(container=options(shm_size="128g"))["HostConfig"]
    assert size_bytes("x", "64mb") == 64 << 20


@pytest.mark.parametrize(
    "bad",
    [
        {"image": ""},
        {"image": "vllm@sha256:0"},
        {"digest": "sha256:12"},
        {"gpu_access": "all"},
        {"shm_size": "many"},
        {"mounts": ["relative:/x"]},
        {"mounts": ["/a:/b:maybe"]},
        {"log_max_files": "few"},
        {"cap_drop": "ALL"},
        {"unknown": 1},
    ],
)
def test_a_mistake_gets_one_line(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        container_from(options(**bad))
    assert "\n" not in str(caught.value)


def test_log_frames_become_text() -> None:
    frames = b"\x01\0\0\0\0\0\0\x02a\n" + b"\x02\0\0\0\0\0\0\x03bc\n"
    assert demultiplex(frames) == b"a\nbc\n"
    assert demultiplex(b"plain text of a terminal") == b"plain text of a terminal"


class OneImage:
    """A daemon that knows one image by some names."""

    def __init__(self, names: list[str], digests: list[str]) -> None:
        self.names, self.digests = names, digests

    def image(self, name: str) -> dict[str, Any] | None:
        return {"Id": DIGEST, "RepoDigests": self.digests} if name in self.names else None


@pytest.mark.parametrize(
    ("names", "digests", "digest", "present", "known"),
    [
        (["r:5000/e:1"], ["r:5000/e@sha256:1"], None, True, "sha256:1"),
        (["r:5000/e:1", "r:5000/e:1@sha256:1"], ["r:5000/e@sha256:1"], "sha256:1", True, "sha256:1"),
        (["r:5000/e:1"], ["r:5000/e@sha256:2"], "sha256:1", False, "sha256:1"),  # the tag has moved
        (["r:5000/e:1"], [], DIGEST, True, None),  # loaded from a file: its own id is the pin
        ([], [], None, False, None),
    ],
)
def test_which_image_is_here(names: list[str], digests: list[str], digest: str | None, present: bool, known: str | None) -> None:
    found = find_image(OneImage(names, digests), "r:5000/e:1", digest)  # type: ignore[arg-type]
    assert (found["present"], found["digest"]) == (present, known)
