"""Who a key belongs to, and which models it opens.

A key's text is hashed and forgotten: the directory knows keys by their SHA-256 alone, and finds one by a single look-up
in a dict, so that a wrong key costs what a right one does. A fast hash is right here, because keys are 256 random bits
and not words that somebody chose. Tables are built once for a policy; a new policy gets a new directory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tenancy.policy import Key, Model, Policy, Tenant


def hash_key(key: str) -> str:
    """The SHA-256 of a key's text, as 64 hex digits: what the file has after `sha256:`."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class ModelFound:
    """The tenant and its key may use the model; `name` is its canonical name."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelUnknown:
    """No such model, or none that the tenant may know of: the two must look alike to it."""


@dataclass(frozen=True, slots=True)
class ModelNotAllowed:
    """The tenant may use the model, but this key may not."""

    name: str


class Directory:
    """The keys and models of one policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._keys = {key.hash: (tenant, key) for tenant in policy.tenants.values() for key in tenant.keys}
        self._found = {
            name: ModelFound(model.name) for model in policy.models.values() for name in (model.name, *model.aliases)
        }

    def find(self, key_text: str, now_epoch: float) -> tuple[Tenant, Key] | None:
        """The tenant whose key this is, and the key; `None` where there is none, or it has expired.

        `now_epoch` is seconds since the epoch. One hash and one look-up, about 1 µs.
        """
        found = self._keys.get(hash_key(key_text))
        if found is None:
            return None
        expires_at = found[1].expires_at
        return found if expires_at is None or now_epoch < expires_at else None

    def model(self, tenant: Tenant, key: Key, name: str) -> ModelFound | ModelUnknown | ModelNotAllowed:
        """Which model is meant by `name`, canonical or an alias, and whether it may be used. O(1)."""
        found = self._found.get(name)
        if found is None or not self._policy.may_use(tenant, found.name):
            return ModelUnknown()
        if key.models is not None and found.name not in key.models:
            return ModelNotAllowed(found.name)
        return found

    def models(self, tenant: Tenant, key: Key) -> list[Model]:
        """The models that this key opens, in the file's order."""
        return [
            model
            for model in self._policy.models.values()
            if self._policy.may_use(tenant, model.name) and (key.models is None or model.name in key.models)
        ]
