"""The simulator's pool of blocks: exact, never beyond its size, and blind between salts."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.pods.kv_cache import Holding, Key, Pool, chain, keys

BLOCK = 4


def pieces(text: str) -> list[str]:
    return list(text)


def take(pool: Pool, salt: str, text: str) -> Holding | None:
    return pool.take(salt.partition(":")[0], keys(salt, pieces(text), pool.block_tokens), len(text))


def test_a_prompt_takes_its_blocks_rounded_up() -> None:
    pool = Pool(10, BLOCK, 64)
    assert take(pool, "a", "abcde") is not None
    assert (pool.all.now, pool.owners["a"].now, pool.free) == (2, 2, 8)


def test_a_prompt_that_begins_alike_shares_the_full_blocks_before_its_last_token() -> None:
    pool = Pool(10, BLOCK, 64)
    take(pool, "a", "abcdefgh-one")
    second = take(pool, "a", "abcdefgh-two")
    assert second is not None and second.reused == 2
    assert pool.all.now == 4
    assert pool.hit_tokens == 2 * BLOCK

    same = take(pool, "a", "abcdefgh")
    assert same is not None and same.reused == 1, "the block of the last token is computed anew"


def test_nothing_is_shared_between_salts_of_whatever_tenant() -> None:
    pool = Pool(20, BLOCK, 64)
    for salt in ("acme", "acme:x", "beta", ""):
        holding = take(pool, salt, "abcdefghijkl")
        assert holding is not None and holding.reused == 0
    assert pool.owners["acme"].now == 6
    assert pool.hit_tokens == 0


def test_released_blocks_are_found_again_until_the_room_is_needed() -> None:
    pool = Pool(4, BLOCK, 64)
    first = take(pool, "a", "abcdefgh?")
    assert first is not None
    pool.release(first)
    assert (pool.all.now, pool.free) == (0, 4)
    again = take(pool, "a", "abcdefgh!")
    assert again is not None and again.reused == 2
    pool.release(again)

    other = take(pool, "b", "0123456789abcdef")
    assert other is not None and other.blocks == 4
    pool.release(other)
    forgotten = take(pool, "a", "abcdefgh?")
    assert forgotten is not None and forgotten.reused == 0


def test_a_pool_that_does_not_share_gives_every_prompt_all_of_its_blocks() -> None:
    pool = Pool(10, BLOCK, 64, shares=False)
    for _ in range(2):
        holding = take(pool, "a", "abcdefgh-one")
        assert holding is not None and (holding.reused, holding.private) == (0, 3)
    assert (pool.all.now, pool.hit_tokens) == (6, 0)


def test_a_prompt_that_does_not_fit_takes_nothing() -> None:
    pool = Pool(3, BLOCK, 64)
    take(pool, "a", "abcdefgh")
    assert take(pool, "b", "abcdefgh") is None
    assert (pool.all.now, pool.free) == (2, 1)
    assert "b" not in pool.owners


def test_the_most_held_at_once_begins_anew_at_a_reset() -> None:
    pool = Pool(10, BLOCK, 64)
    first, second = take(pool, "a", "abcdefgh"), take(pool, "b", "abcd")
    assert first is not None and second is not None
    pool.release(first)
    assert (pool.all.most, pool.owners["a"].most) == (3, 2)
    pool.reset_peaks()
    assert pool.all.most == 1
    assert list(pool.owners) == ["b"]


class PoolMachine(RuleBasedStateMachine):
    """Whatever is taken, extended, filled and given back: the counts are those of the blocks really held."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Holding, str, list[str], list[Key]]] = []
        self.peak = 0

    @initialize(blocks=st.integers(1, 12))
    def build(self, blocks: int) -> None:
        self.pool = Pool(blocks, BLOCK, 64)

    @rule(
        salt=st.sampled_from(["a", "a", "a:1", "b"]),
        alike=st.integers(0, 12),
        text=st.text("xy", min_size=1, max_size=6),
    )
    def start(self, salt: str, alike: int, text: str) -> None:
        text = "x" * alike + text  # so that many begin alike
        names = keys(salt, pieces(text), BLOCK)
        free, fits = self.pool.free, self.pool.fits(names, len(text))
        holding = take(self.pool, salt, text)
        assert (holding is not None) == fits
        if holding is None:
            assert self.pool.free == free
        else:
            assert holding.blocks == -(-len(text) // BLOCK)
            self.held.append((holding, salt, pieces(text), names))

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 99), letter=st.sampled_from("xy"))
    def say(self, at: int, letter: str) -> None:
        holding, salt, said, names = self.held[at % len(self.held)]
        if len(said) == holding.blocks * BLOCK:
            name = chain(salt, names[-1] if names else None, said[-BLOCK:])
            if len(names) < holding.blocks:
                names.append(name)
                self.pool.seal(holding, name)
            free = self.pool.free
            if not self.pool.extend(holding):
                assert free == 0
                return
        said.append(letter)

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 99))
    def end(self, at: int) -> None:
        self.pool.release(self.held.pop(at % len(self.held))[0])

    @invariant()
    def counts_are_true(self) -> None:
        if not hasattr(self, "pool"):
            return
        owners: dict[str, int] = {}
        for owner in {holding.owner for holding, *_ in self.held}:
            mine = [holding for holding, *_ in self.held if holding.owner == owner]
            shared = {name for holding in mine for name in holding.shared}
            owners[owner] = len(shared) + sum(holding.private for holding in mine)
        assert {owner: row.now for owner, row in self.pool.owners.items() if row.now} == {
            k: v for k, v in owners.items() if v
        }
        assert self.pool.all.now == sum(owners.values()) == self.pool.blocks - self.pool.free
        self.peak = max(self.peak, self.pool.all.now)
        assert self.pool.all.most == self.peak <= self.pool.blocks
        for holding, salt, *_ in self.held:
            assert all(name[0] == salt for name in holding.shared)


TestPool = PoolMachine.TestCase
