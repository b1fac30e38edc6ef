"""The Kubeflow ConfigMap `kubeflow-gpu-profiles` is read as it is, and its faults are named where they stand in it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from tenancy.config.faults import ConfigError, Fault
from tenancy.config.load import load, load_with_places
from tenancy.policy import Policy, Profile

POLICY = """\
profiles: gpu.yaml
pods: [{name: chat-0, url: "http://a", models: [m], profile: inference}]
tenants: [{name: acme, profile: batch}]
"""

LIST = """\
- name: inference
  gpuShare: true
  maxMemory: 20Gi
  overcommitRatio: 1.3
- name: batch
  priority: 50
  preemptible: true
"""

HEAD = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kubeflow-gpu-profiles\n  namespace: kubeflow\n"

BOTH = [
    Profile("inference", max_memory_bytes=20 * 2**30, overcommit_ratio=1.3),
    Profile("batch", priority=50, preemptible=True),
]


def block(key: str, text: str, style: str = "|") -> str:
    """A key of `data` with a text in block style."""
    return f"  {key}: {style}\n" + "".join(f"    {line}\n" for line in text.splitlines())


def read(manifest: str, policy: str = POLICY, env: Mapping[str, str] | None = None) -> Policy:
    return load(policy, env or {}, read_file={"gpu.yaml": manifest}.__getitem__)


def faults_of(manifest: str, policy: str = POLICY) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        read(manifest, policy)
    return caught.value.faults


BY_NAME = (
    "inference: {gpuShare: true, maxMemory: 20Gi, overcommitRatio: 1.3}\nbatch: {priority: 50, preemptible: true}\n"
)
ONE = "gpuShare: true\nmaxMemory: 20Gi\novercommitRatio: 1.3\n"
TWO = '{"name": "batch", "priority": 50, "preemptible": true}'


@pytest.mark.parametrize(
    "manifest",
    [
        HEAD + "data:\n" + block("profiles.yaml", LIST),
        HEAD + "data:\n" + block("profiles", "profiles:\n" + LIST),
        HEAD + "data:\n" + block("profiles", BY_NAME),
        HEAD + "data:\n" + block("profiles", "profiles:\n  " + BY_NAME.replace("\n", "\n  ")),
        HEAD + "data:\n" + block("inference", ONE) + block("batch.json", TWO, ">-"),
        HEAD + "data:\n" + block("inference.yaml", ONE, "|-  # comment") + f"  any: '{TWO}'\n",
        HEAD + "data:\n  profiles.json: '" + '[{"name": "inference", "maxMemory": "20Gi", "overcommitRatio": "1.3"'
        ', "gpuShare": "true"}, {"name": "batch", "priority": "50", "preemptible": "true"}]' + "'\n",
        HEAD + "data:\n  profiles:\n    - {name: inference, maxMemory: 20Gi, overcommitRatio: 1.3}\n    - " + TWO,
        "kind: Namespace\nmetadata: {name: kubeflow}\n---\n" + HEAD + "data:\n" + block("profiles", LIST),
        "kind: ConfigMap\nmetadata: {name: other}\ndata: {a: b}\n---\n" + HEAD + "data:\n" + block("profiles", LIST),
        LIST,
        "profiles:\n" + LIST,
        BY_NAME,
        json.dumps({"kind": "ConfigMap", "metadata": {"name": "kubeflow-gpu-profiles"}, "data": {"profiles": LIST}}),
    ],
)  # fmt: skip
def test_every_shape_that_can_mean_only_one_thing_is_read(manifest: str) -> None:
    assert list(read(manifest).profiles.values()) == BOTH


def test_variables_are_left_as_they_stand_in_a_configmap() -> None:
    (fault,) = faults_of(HEAD + "data:\n" + block("profiles", LIST.replace("20Gi", '"${SIZE}"')))
    assert "'${SIZE}' is not a size" in fault.reason


def test_a_fault_names_the_key_of_data_and_the_line_in_the_manifest() -> None:
    manifest = HEAD + "data:\n" + block("profiles.yaml", LIST.replace("maxMemory: 20Gi", "maxMem: 20Gi"))
    (fault,) = faults_of(manifest)
    assert fault == Fault('data["profiles.yaml"][0].maxMem', 10, "unknown key", "did you mean 'maxMemory'?", "gpu.yaml")
    assert manifest.splitlines()[9].strip() == "maxMem: 20Gi"


def test_a_fault_in_a_quoted_text_is_on_the_line_of_its_key() -> None:
    manifest = HEAD + f"data:\n  batch: {json.dumps(ONE.replace('20Gi', '20GB'))}\n"
    fault = next(fault for fault in faults_of(manifest) if fault.source == "gpu.yaml")
    assert (fault.place, fault.line) == ("data.batch.maxMemory", 7)


def test_broken_yaml_within_a_text_is_a_fault_there() -> None:
    (fault,) = faults_of(HEAD + "data:\n" + block("profiles", "- name: a\n  gpuShare: [\n"))
    assert (fault.place, fault.line, fault.source) == ("data.profiles", 9, "gpu.yaml")
    assert "is not YAML" in fault.reason


@pytest.mark.parametrize(
    ("manifest", "place", "said"),
    [
        (HEAD, "data", "holds no profiles"),
        (HEAD + "data: {}\n", "data", "holds no profiles"),
        (HEAD + "data: {profiles: hello}\n", "data.profiles", "holds no profiles"),
        (HEAD + "data: {profiles: ''}\n", "data.profiles", "holds no profiles"),
        (HEAD + "data: {profiles: 'a: 1'}\n", "data.profiles", "holds no profiles"),
        ("kind: Secret\n", "kind", "is not a ConfigMap but 'Secret'"),
        ("kind: ConfigMap\n---\nkind: ConfigMap\n", "", "several ConfigMaps"),
        ("", "", "holds no profiles"),
        ("a: [", "", "is not YAML"),
        (HEAD + "data: {profiles: '{profiles: [], profile: []}'}\n", "data.profiles.profile", "unknown key"),
        (HEAD + "data: {profiles: '[5]'}\n", "data.profiles[0]", "must be a mapping of keys"),
        (HEAD + "data: {profiles: '[null]'}\n", "data.profiles[0]", "has no value"),
    ],
)
def test_what_holds_no_profiles_is_told_so(manifest: str, place: str, said: str) -> None:
    found = [fault for fault in faults_of(manifest) if fault.source == "gpu.yaml"]
    assert [fault.place for fault in found] == [place]
    assert said in found[0].reason


def test_names_that_the_configmap_lacks_are_faults_of_the_file_that_names_them() -> None:
    (fault,) = faults_of(HEAD + "data:\n" + block("profiles", LIST.replace("name: batch", "name: batches")))
    assert (fault.source, fault.place, fault.remedy) == (
        "penstock.yaml",
        "tenants[0].profile",
        "did you mean 'batches'?",
    )


def test_faults_of_both_files_are_told_at_once() -> None:
    manifest = HEAD + "data:\n" + block("profiles", LIST.replace("20Gi", "20GB"))
    faults = faults_of(manifest, POLICY.replace("models: [m]", "models: [m], slots: 3"))
    assert [(fault.source, fault.place) for fault in faults] == [
        ("penstock.yaml", "pods[0].slots"),
        ("gpu.yaml", "data.profiles[0].maxMemory"),
    ]


def test_two_profiles_of_one_name_are_a_fault() -> None:
    (fault,) = faults_of(HEAD + "data:\n" + block("a", LIST) + block("inference", ONE))
    assert fault.place == "data.inference.name"
    assert "'inference' is taken" in fault.reason


def test_a_file_that_cannot_be_read_is_a_fault_where_it_is_named() -> None:
    def missing(name: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", name)

    with pytest.raises(ConfigError) as caught:
        load(POLICY, {}, read_file=missing)
    (fault,) = caught.value.faults
    assert (fault.place, fault.line) == ("profiles", 1)
    assert "'gpu.yaml' cannot be read: No such file or directory" in fault.reason
    with pytest.raises(ConfigError, match="write the profiles as a list"):
        load(POLICY, {})


def test_a_place_in_a_configmap_can_be_found_again() -> None:
    loaded = load_with_places(POLICY, {}, read_file=lambda _: HEAD + "data:\n" + block("profiles", LIST))
    assert loaded.locate(("profiles", 1, "priority")) == ("gpu.yaml", 13)
    assert loaded.locate(("pods", 0)) == ("penstock.yaml", 2)
    assert {key.key: key.line for key in loaded.not_yet} == {"profiles[].priority": 13, "profiles[].preemptible": 14}
