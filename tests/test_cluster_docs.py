"""The manifest in docs/ is a RayJob whose command works, and whose nodes all see the folder that it names."""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pairmill import __version__
from pairmill.recipe import Recipe, load_recipe

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((DOCS / "kuberay.yaml").read_text())


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_manifest_is_a_rayjob_of_our_versions(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == importlib.metadata.version("ray")
    images = {container["image"] for pod in pods(job) for container in pod["containers"]}
    assert images == {f"REGISTRY/pairmill:{__version__}"}


def test_its_command_names_a_recipe_and_settings_that_there_are(job: dict[str, Any]) -> None:
    program, command, recipe, *flags = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("pairmill", "run")
    asked = dict(zip(flags[::2], flags[1::2], strict=True))
    assert set(asked) == {"--input", "--out", "--set"}
    key, _, value = asked["--set"].partition("=")
    assert isinstance(load_recipe(recipe, {key: value}), Recipe)


def test_every_pod_mounts_the_folder_of_the_command_and_a_scratch_disk(job: dict[str, Any]) -> None:
    folder = job["spec"]["entrypoint"].partition("--out ")[2].split()[0]
    for pod in pods(job):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert "persistentVolumeClaim" in volumes["data"]
        for container in pod["containers"]:
            places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert folder.startswith(f"{places['data']}/")
            assert {"name": "TMPDIR", "value": places["scratch"]} in container["env"]


def test_the_head_does_no_tasks_and_a_group_may_be_taken_away(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
