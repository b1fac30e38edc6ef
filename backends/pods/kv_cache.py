"""The simulator's KV memory: a pool of blocks, as vLLM manages it.

A sequence takes the blocks of its prompt when it starts, and one more whenever its last one is full. A full block is
known by all that it holds and all that stands before it; a later prompt of the same salt that begins alike shares it
instead of taking another. Blocks that nobody uses keep their contents until the room is needed, oldest first. Nothing
is ever shared between salts: the salt is part of a block's name.

The pool decides who gets memory and keeps count, per owner, of how much is held now and was held at most. Who waits
and who is thrown out when there is none is decided in `batch`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

Key = tuple[str, int]
"""A full block's name: its salt, and a hash of its contents and of all that stands before it."""


def chain(salt: str, before: Key | None, pieces: Sequence[str]) -> Key:
    """The name of the block that holds `pieces` and follows `before`."""
    return salt, hash((before, "".join(pieces)))


def keys(salt: str, pieces: Sequence[str], block_tokens: int) -> list[Key]:
    """The names of all full blocks of a prompt, in order. About 0.6 µs a block."""
    names: list[Key] = []
    before: Key | None = None
    for start in range(0, len(pieces) - block_tokens + 1, block_tokens):
        before = chain(salt, before, pieces[start : start + block_tokens])
        names.append(before)
    return names


@dataclass(slots=True)
class Held:
    """Blocks that one owner holds now, and the most it held at once. A block shared by its sequences counts once."""

    now: int = 0
    most: int = 0


@dataclass(slots=True, eq=False)
class Holding:
    """The blocks of one sequence: shared ones by name, others as a number. `reused` of them were there already."""

    owner: str
    shared: list[Key] = field(default_factory=list)
    private: int = 0
    reused: int = 0

    @property
    def blocks(self) -> int:
        return len(self.shared) + self.private


class Pool:
    """`blocks` blocks of `block_tokens` tokens, each of `block_bytes` bytes. All operations are O(blocks touched).

    Where it does not share (`shares`), every sequence has all of its blocks to itself.
    """

    def __init__(self, blocks: int, block_tokens: int, block_bytes: int, *, shares: bool = True) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.block_bytes = block_bytes
        self.shares = shares
        self.all = Held()
        self.owners: dict[str, Held] = {}
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._uses: dict[Key, int] = {}  # full blocks in use -> sequences that use them
        self._idle: OrderedDict[Key, None] = OrderedDict()  # full blocks that nobody uses, oldest first
        self._bare = blocks  # blocks that hold nothing

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return self._bare + len(self._idle)

    @property
    def usage(self) -> float:
        """The share of the pool in use, 0-1."""
        return self.all.now / self.blocks

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens fill."""
        return -(-tokens // self.block_tokens)

    def fits(self, names: Sequence[Key], tokens: int) -> bool:
        """Whether `take` would succeed now."""
        reused = self._match(names, tokens)
        resting = sum(1 for name in names[:reused] if name not in self._uses)
        return self.blocks_for(tokens) - reused <= self.free - resting

    def take(self, owner: str, names: Sequence[Key], tokens: int) -> Holding | None:
        """Blocks for a sequence of so many tokens, or `None` where there are too few; then nothing has changed.

        `names` are those of its full blocks. Blocks that are there already are shared, up to the last one before the
        last token: that one has to be computed anyway.
        """
        if not self.fits(names, tokens):
            return None
        self.queried_tokens += tokens
        holding = Holding(owner, reused=self._match(names, tokens))
        self.hit_tokens += holding.reused * self.block_tokens
        for name in names[: holding.reused]:
            self._share(holding, name)
        wanted = self.blocks_for(tokens) - holding.reused
        self._claim(holding, wanted)
        for name in names[holding.reused :]:
            self.seal(holding, name)
        return holding

    def extend(self, holding: Holding) -> bool:
        """One more block for a sequence; false where none is free."""
        if not self.free:
            return False
        self._claim(holding, 1)
        return True

    def seal(self, holding: Holding, name: Key) -> None:
        """A block of the sequence is full and gets its name, unless another bears it already."""
        if not self.shares or name in self._uses or name in self._idle:
            return
        self._uses[name] = 1
        holding.shared.append(name)
        holding.private -= 1

    def release(self, holding: Holding) -> None:
        """Give back all blocks of a sequence. Full ones can still be found by later prompts."""
        returned = holding.private
        self._bare += holding.private
        for name in reversed(holding.shared):  # the end of a prompt is given up before its beginning
            if self._uses[name] > 1:
                self._uses[name] -= 1
            else:
                del self._uses[name]
                self._idle[name] = None
                returned += 1
        holding.shared.clear()
        holding.private = 0
        self.all.now -= returned
        self.owners[holding.owner].now -= returned

    def reset_peaks(self) -> None:
        """Let the most held at once begin anew from what is held now; owners that hold nothing are forgotten."""
        self.owners = {owner: held for owner, held in self.owners.items() if held.now}
        for held in (self.all, *self.owners.values()):
            held.most = held.now

    def _match(self, names: Sequence[Key], tokens: int) -> int:
        most = (tokens - 1) // self.block_tokens
        found = 0
        for name in names[:most]:
            if name not in self._uses and name not in self._idle:
                break
            found += 1
        return found

    def _share(self, holding: Holding, name: Key) -> None:
        if name in self._uses:
            self._uses[name] += 1
        else:
            del self._idle[name]
            self._uses[name] = 1
            self._count(holding.owner, 1)
        holding.shared.append(name)

    def _claim(self, holding: Holding, blocks: int) -> None:
        for _ in range(blocks - self._bare):
            self._idle.popitem(last=False)
            self._bare += 1
        self._bare -= blocks
        holding.private += blocks
        self._count(holding.owner, blocks)

    def _count(self, owner: str, blocks: int) -> None:
        held = self.owners.get(owner)
        if held is None:
            held = self.owners[owner] = Held()
        for row in (held, self.all):
            row.now += blocks
            if row.now > row.most:
                row.most = row.now
