"""Keys lead to tenants, and names to models that a tenant and its key may use."""

from __future__ import annotations

import hashlib

import pytest

from tenancy.directory import Directory, ModelFound, ModelNotAllowed, ModelUnknown, hash_key
from tenancy.policy import Key, Model, Policy, Tenant

MODELS = (Model("tiny", aliases=("gpt-demo",)), Model("big"), Model("secret"))
CI = Key(hash_key("key-ci"), "ci", models=frozenset({"tiny"}), expires_at=1000.0)
ALL = Key(hash_key("key-all"), "all")
ACME = Tenant("acme", keys=(CI, ALL), models=frozenset({"tiny", "big"}))
BETA_KEY = Key(hash_key("key-beta"), "main")
BETA = Tenant("beta", keys=(BETA_KEY,))


@pytest.fixture
def directory() -> Directory:
    return Directory(Policy(models={m.name: m for m in MODELS}, tenants={t.name: t for t in (ACME, BETA)}))


def test_each_key_of_a_tenant_leads_to_the_tenant_and_itself(directory: Directory) -> None:
    assert directory.find("key-ci", 0.0) == (ACME, CI)
    assert directory.find("key-all", 0.0) == (ACME, ALL)
    assert directory.find("key-beta", 0.0) == (BETA, BETA_KEY)


@pytest.mark.parametrize("text", ["", "key-cI", "sha256:" + CI.hash, CI.hash, "ключ", "\udcff"])
def test_a_text_that_is_no_key_is_not_found(directory: Directory, text: str) -> None:
    assert directory.find(text, 0.0) is None


def test_a_key_is_found_until_the_moment_it_expires(directory: Directory) -> None:
    assert directory.find("key-ci", 999.9) == (ACME, CI)
    assert directory.find("key-ci", 1000.0) is None
    assert directory.find("key-all", 1e12) == (ACME, ALL)


def test_a_hash_is_that_of_sha256sum() -> None:
    assert hash_key("sk-penstock-x") == hashlib.sha256(b"sk-penstock-x").hexdigest()


def test_the_directory_keeps_no_text_of_a_key(directory: Directory) -> None:
    directory.find("key-ci", 0.0)
    directory.find("wrong-key", 0.0)
    assert "key-ci" not in repr(vars(directory))
    assert "wrong-key" not in repr(vars(directory))


def test_an_alias_leads_to_the_canonical_name(directory: Directory) -> None:
    assert directory.model(ACME, ALL, "gpt-demo") == ModelFound("tiny")
    assert directory.model(ACME, CI, "tiny") == ModelFound("tiny")


def test_a_model_that_the_tenant_may_not_use_looks_like_one_that_does_not_exist(directory: Directory) -> None:
    assert directory.model(ACME, ALL, "secret") == directory.model(ACME, ALL, "nonesuch") == ModelUnknown()
    assert directory.model(ACME, CI, "secret") == ModelUnknown()


def test_a_model_that_only_the_key_may_not_use_is_not_allowed(directory: Directory) -> None:
    assert directory.model(ACME, CI, "big") == ModelNotAllowed("big")


def test_a_tenant_without_a_list_may_use_every_model(directory: Directory) -> None:
    assert directory.model(BETA, BETA_KEY, "secret") == ModelFound("secret")
    assert directory.models(BETA, BETA_KEY) == list(MODELS)


def test_the_models_of_a_key_are_those_that_both_it_and_its_tenant_may_use(directory: Directory) -> None:
    assert [model.name for model in directory.models(ACME, ALL)] == ["tiny", "big"]
    assert [model.name for model in directory.models(ACME, CI)] == ["tiny"]
