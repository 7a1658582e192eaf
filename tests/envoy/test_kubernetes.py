"""envoy/kubernetes: what it renders to is valid, has the least power, and runs as its pods are made."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from sidecar.server.listen import LAST_WORDS_SECONDS
from tests.commands.process import started
from tests.envoy.kustomize import Objects, render
from tests.envoy.stand import FOLDER
from tests.faults.ground import closed_port

KUBERNETES: Final = FOLDER / "kubernetes"
OVERLAYS: Final = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
VERSIONS: Final = ("1.29", "1.32", "1.37")  # the first with native sidecars, the newest that is known
EACH: Final = pytest.mark.parametrize("overlay", OVERLAYS)
SPARE_SECONDS: Final = 5.0  # between the end of the drain and SIGKILL


def rendered(overlay: str) -> Objects:
    return render(KUBERNETES / "overlays" / overlay)


def pod(objects: Objects) -> Any:
    return objects["Deployment", "llm-sidecar"]["spec"]["template"]


def containers(objects: Objects) -> Iterator[Any]:
    spec = pod(objects)["spec"]
    yield from (*spec.get("initContainers", ()), *spec["containers"])


def ours(objects: Objects) -> Any:
    (found,) = (each for each in containers(objects) if each["name"] == "sidecar")
    return found


def config(objects: Objects) -> Any:
    return tomllib.loads(objects["ConfigMap", "llm-sidecar"]["data"]["sidecar.toml"])


def test_there_are_three_ways() -> None:
    assert OVERLAYS == ["classic-sidecar", "native-sidecar", "standalone"]


@EACH
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    objects = rendered(overlay)
    for (kind, _), each in objects.items():
        if kind != "PodMonitor":
            kubernetes_validate.validate(each, version, strict=True)
    monitor = objects["PodMonitor", "llm-sidecar"]  # a resource of the Prometheus operator's, with no schema here
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s"}]


def test_a_fault_would_be_found() -> None:
    objects = rendered("standalone")
    pod(objects)["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(objects["Deployment", "llm-sidecar"], VERSIONS[-1], strict=True)


@EACH
def test_kubectl_renders_the_same(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not there (and no package of Debian, PyPI or npm has a new enough one)")
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    theirs = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    assert theirs == rendered(overlay)


@EACH
def test_pods_have_no_power_that_they_do_not_need(overlay: str) -> None:
    objects = rendered(overlay)
    spec = pod(objects)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert objects["ServiceAccount", "llm-sidecar"]["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert [*spec["volumes"][0], *spec["volumes"][1]] == ["name", "configMap", "name", "secret"]
    for each in containers(objects):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["limits"].keys() == {"memory"}
        assert re.fullmatch(r"\w+:1", each["image"])  # no registry
        assert all(mount["readOnly"] and "subPath" not in mount for mount in each.get("volumeMounts", ()))
    assert "Secret" not in {kind for kind, _ in objects}


def test_the_sidecar_is_the_same_in_every_way() -> None:
    classic, native, standalone = map(ours, map(rendered, OVERLAYS))
    assert native.pop("restartPolicy") == "Always"
    assert classic == native == standalone
    assert [each["name"] for each in pod(rendered("native-sidecar"))["spec"]["initContainers"]] == ["sidecar"]
    assert [each["name"] for each in pod(rendered("native-sidecar"))["spec"]["containers"]] == ["app"]


@EACH
def test_names_and_ports_fit_together(overlay: str) -> None:
    objects = rendered(overlay)
    sidecar, found, labels = ours(objects), config(objects), pod(objects)["metadata"]["labels"]
    (port,) = sidecar["ports"]
    assert found["server"]["listen"] == [f"0.0.0.0:{port['containerPort']}"]
    assert {sidecar[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "readiness", "liveness")} == {"http"}
    for kind, name in (
        ("PodDisruptionBudget", "selector"),
        ("PodMonitor", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        assert objects[kind, "llm-sidecar"]["spec"][name]["matchLabels"] == labels
    mounts = {mount["name"]: mount["mountPath"] for mount in sidecar["volumeMounts"]}
    assert f"{mounts['config']}/sidecar.toml" in sidecar["args"]
    keys = {table.get("api_key") or table["key"] for kind in ("providers", "callers") for table in found[kind].values()}
    assert keys == {f"file:{mounts['keys']}/{name}" for name in ("openai", "anthropic", "app")}
    for each in containers(objects):
        for variable in each.get("env", ()):
            if "URL" in variable["name"]:
                assert variable["value"].startswith(f"http://127.0.0.1:{port['containerPort']}")
            else:
                assert variable["valueFrom"] == {"secretKeyRef": {"name": "llm-sidecar-keys", "key": "app"}}


def test_the_standalone_one_is_found_and_scaled() -> None:
    objects = rendered("standalone")
    assert objects["Service", "llm-sidecar"]["spec"]["selector"] == pod(objects)["metadata"]["labels"]
    assert objects["Service", "llm-sidecar"]["spec"]["ports"][0]["targetPort"] == "http"
    scaler = objects["HorizontalPodAutoscaler", "llm-sidecar"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "llm-sidecar"
    assert scaler["minReplicas"] > objects["PodDisruptionBudget", "llm-sidecar"]["spec"]["maxUnavailable"]
    assert "replicas" not in objects["Deployment", "llm-sidecar"]["spec"]  # else each apply undoes the scaler's


@EACH
def test_a_drain_ends_before_the_pod_is_killed(overlay: str) -> None:
    objects = rendered(overlay)
    server, grace = config(objects)["server"], pod(objects)["spec"]["terminationGracePeriodSeconds"]
    assert server["lame_duck_seconds"] + server["drain_seconds"] + SPARE_SECONDS <= grace
    native = overlay == "native-sidecar"  # told to stop when the application has ended, and nobody is left
    assert (server["lame_duck_seconds"] == 0) is native
    assert 2 * LAST_WORDS_SECONDS < SPARE_SECONDS


ADDRESSES: Final = {
    "1.1.1.1": True,
    "2606:4700::1": True,
    "169.254.169.254": False,  # the cloud's metadata
    "fd00:ec2::254": False,
    "10.0.0.1": False,
    "172.20.0.1": False,
    "192.168.1.1": False,
    "127.0.0.1": False,
    "::1": False,
}


@EACH
@pytest.mark.parametrize(("address", "may"), ADDRESSES.items())
def test_only_the_world_may_be_asked_and_only_by_tls(overlay: str, address: str, may: bool) -> None:
    policy = rendered(overlay)["NetworkPolicy", "llm-sidecar"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    names, world = policy["egress"]
    assert names["to"][0].keys() == {"namespaceSelector", "podSelector"}
    assert world["ports"] == [{"port": 443}]
    wanted = ipaddress.ip_address(address)
    blocks = [each["ipBlock"] for each in world["to"]]
    assert may is any(
        wanted in ipaddress.ip_network(block["cidr"])
        and not any(wanted in ipaddress.ip_network(each) for each in block["except"])
        for block in blocks
    )


# -- as a pod


class Volume:
    """A folder as the kubelet mounts a ConfigMap or a Secret: links to links, replaced all at once."""

    def __init__(self, folder: Path, mode: int) -> None:
        self.folder = folder
        self._mode = mode
        self._version = 0
        folder.mkdir()

    def put(self, files: dict[str, str]) -> None:
        self._version += 1
        real = self.folder / f"..{self._version}"
        real.mkdir()
        for name, text in files.items():
            (real / name).write_text(text)
            (real / name).chmod(self._mode)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        (self.folder / "..new").symlink_to(real.name)
        (self.folder / "..new").rename(self.folder / "..data")


class Pod:
    """The sidecar of an overlay as a process: its arguments, its volumes, on a port of this test's."""

    def __init__(self, overlay: str, folder: Path) -> None:
        objects = rendered(overlay)
        self.sidecar, self.port = ours(objects), closed_port()
        mounts = {each["name"]: each["mountPath"] for each in self.sidecar["volumeMounts"]}
        secret = pod(objects)["spec"]["volumes"][1]["secret"]
        self.maps, self.keys = Volume(folder / "config", 0o644), Volume(folder / "keys", secret["defaultMode"])
        text = objects["ConfigMap", "llm-sidecar"]["data"]["sidecar.toml"]
        text = text.replace("0.0.0.0:4000", f"0.0.0.0:{self.port}").replace(mounts["keys"], str(folder / "keys"))
        self.text = re.sub(r"lame_duck_seconds = [1-9]\d*", "lame_duck_seconds = 1", text)
        self.args = [each.replace(mounts["config"], str(self.maps.folder)) for each in self.sidecar["args"]]
        self.maps.put({"sidecar.toml": self.text})
        self.keys.put({"openai": "sk-o", "anthropic": "sk-a", "app": "key-1"})

    def get(self, path: str, key: str = "") -> httpx.Response:
        """As the kubelet asks, or the application with its key."""
        headers = {"host": f"10.1.2.3:{self.port}", **({"authorization": f"Bearer {key}"} if key else {})}
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, trust_env=False)

    def models(self, key: str) -> set[str]:
        """What a key may ask for: nothing, where it is not known."""
        reply = self.get("/v1/models", key)
        return {each["id"] for each in reply.json()["data"]} if reply.status_code == 200 else set()

    def status(self, probe: str) -> int:
        return self.get(self.sidecar[f"{probe}Probe"]["httpGet"]["path"]).status_code


def comes_true(true: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


@EACH
def test_it_starts_and_ends_as_its_pod_does(overlay: str, tmp_path: Path) -> None:
    made = Pod(overlay, tmp_path)
    with started(*made.args, folder=tmp_path) as process:
        process.line("curl ")
        assert [made.status(probe) for probe in ("startup", "readiness", "liveness")] == [200] * 3
        assert made.get("/metrics").status_code == 200
        assert "fast" in made.models("key-1")
        assert not made.models("key-2")
        if overlay != "native-sidecar":
            process.child.terminate()
            comes_true(lambda: made.status("readiness") == 503, 0.8)
            assert "fast" in made.models("key-1")  # still served: for the application, or until all have heard
            assert made.status("liveness") == 200
        assert process.end() == 0


def test_a_changed_configuration_and_key_are_taken_while_it_runs(tmp_path: Path) -> None:
    made = Pod("standalone", tmp_path)
    with started(*made.args, folder=tmp_path) as process:
        process.line("curl ")
        made.maps.put({"sidecar.toml": made.text.replace("[models.fast]", "[models.quick]")})
        made.keys.put({"openai": "sk-o", "anthropic": "sk-a", "app": "key-2"})
        comes_true(lambda: "quick" in made.models("key-2"), 6.0)
        assert not made.models("key-1")
        assert process.end() == 0
