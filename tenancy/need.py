"""What a call asks for: tokens of prompt and output, and from these blocks of KV memory.

The output is what the call states, or its tenant's `defaultMaxTokens`; the prompt is estimated from its bytes,
because a real tokenizer costs the event loop 1 ms for 4 KB. `Estimates` learns tokens a byte for each tenant and
model from the usage that pods report, and takes the 0.99 quantile, so that about one call in a hundred is
under-estimated. What was under-estimated is charged to the rates at settling. What a token weighs on a pod is the
ledger's to know.
"""

from __future__ import annotations

from math import ceil, frexp

import msgspec

from tenancy.call import CHAT, EMBEDDING, Call, Usage
from tenancy.policy import Model

TOKENS_A_MESSAGE = 8  # a chat template's role and turn tokens
TOKENS_AN_IMAGE = 1024
LEAST_BYTES_A_TOKEN = 8  # no text has fewer tokens than this gives: only beyond it is "too long" our word
_LEAST_TAUGHT_BYTES = 64  # shorter prompts say more of the template than of the text


_QUANTILE = 0.99
_FIRST_TOKENS_A_BYTE = 0.5
_LEAST, _MOST = 1 / 16, 2.0  # tokens a byte that are believed
_STEPS = 16  # bins an octave: a bin is at most 1/16 wide, which is all that rounding up costs
_LOWEST_OCTAVE, _OCTAVES = -4, 6
_READINGS_KEPT = 2048  # at twice as many, the older half of the weight is gone


class Need(msgspec.Struct, frozen=True, gc=False):
    """Tokens that a call asks for. `output_tokens` is of each of its `sequences`, and so is `stated_output_tokens`.

    `output_tokens` is what is reserved: never more than the context leaves. `stated_output_tokens` is what the pod is
    told, which is the client's own number where it gave one. `prompts` counts separate prompts in one call.
    """

    prompt_tokens: int
    output_tokens: int
    stated_output_tokens: int
    sequences: int = 1
    prompts: int = 1

    @property
    def tokens(self) -> int:
        """Prompt and all outputs together: what the token rate is charged."""
        return self.prompt_tokens + self.sequences * self.output_tokens

    def is_at_least(self, other: Need) -> bool:
        """Whether no pod that lacks room for `other` could have room for this."""
        return (
            self.prompt_tokens >= other.prompt_tokens
            and self.output_tokens >= other.output_tokens
            and self.sequences >= other.sequences
            and self.prompts >= other.prompts
        )

    def blocks(self, block_tokens: int) -> int:
        """KV blocks on a pod whose blocks hold `block_tokens`: sequences share the prompt, each part rounded up."""
        if self.sequences == 1 and self.prompts == 1:
            return -(-(self.prompt_tokens + self.output_tokens) // block_tokens)
        prompt = -(-self.prompt_tokens // block_tokens) + self.prompts - 1
        return prompt + self.sequences * -(-self.output_tokens // block_tokens)


class Estimates:
    """Tokens a byte, learned for each tenant and model. Memory: about 100 counts for each pair that was ever taught."""

    __slots__ = ("_learned",)

    def __init__(self) -> None:
        self._learned: dict[tuple[str, str], _Quantile] = {}

    def need(self, call: Call, model: Model | None) -> Need:
        """What `call` asks for; `model` bounds each sequence by its context."""
        # Conditions, not `min` and `max`: these are calls, and cost ten times as much.
        kind, sequences = call.kind, call.sequences
        prompts = 1 if kind is CHAT or call.messages < 1 else call.messages
        if sequences < 1:
            sequences = 1
        prompt = self.prompt_tokens(call)
        context = None if model is None else model.context_tokens
        if context is not None and prompt > context * prompts:
            prompt = context * prompts
        if kind is EMBEDDING:
            return Need(prompt, 0, 0, 1, prompts)
        # Separate prompts may differ in length: for them nothing is deducted from the room that the context leaves.
        stated = call.output_tokens
        if stated is None:
            stated = max(1, call.tenant.default_max_tokens)
            if context is not None:
                stated = min(stated, max(1, context - (prompt if prompts == 1 else 0)))
        output = stated
        if context is not None:
            # The estimate may be above the true prompt, and the output then longer than it leaves: bound the sum.
            if output > context:
                output = context
            left = (sequences if sequences > prompts else prompts) * context - sequences * output
            if prompt > left:
                prompt = left
        return Need(prompt, output, stated, sequences, prompts)

    def prompt_tokens(self, call: Call) -> int:
        """The tokens that the call's prompt will probably not exceed."""
        learned = self._learned.get((call.tenant.name, call.model))
        tokens_a_byte = _FIRST_TOKENS_A_BYTE if learned is None else learned.value
        return ceil(call.prompt_bytes * tokens_a_byte) + _fixed_tokens(call)

    def teach(self, call: Call, usage: Usage) -> None:
        """Learn from what a pod reported for `call`: plain text of some length only."""
        if not usage.is_reported or call.images or call.prompt_bytes < _LEAST_TAUGHT_BYTES:
            return
        tokens = usage.prompt_tokens - _fixed_tokens(call)
        pair = (call.tenant.name, call.model)
        learned = self._learned.get(pair)
        if learned is None:
            learned = self._learned[pair] = _Quantile()
        learned.add(tokens / call.prompt_bytes)

    def keep_only(self, tenants: frozenset[str], models: frozenset[str]) -> None:
        """Forget what was learned for tenants and models that are no more."""
        self._learned = {
            pair: learned for pair, learned in self._learned.items() if pair[0] in tenants and pair[1] in models
        }


def _fixed_tokens(call: Call) -> int:
    messages = call.messages if call.messages > 1 else 1
    return TOKENS_A_MESSAGE * messages + TOKENS_AN_IMAGE * call.images + call.prompt_tokens


class _Quantile:
    """The 0.99 quantile of tokens a byte, by a log-linear histogram whose old counts fade.

    It begins with one reading of the first guess: so the first hundred readings can raise the estimate, each alone, but
    only many together lower it.
    """

    __slots__ = ("_above", "_bin", "_counts", "_total", "value")

    def __init__(self) -> None:
        self._counts = [0] * (_OCTAVES * _STEPS)
        self._bin = _bin_of(_FIRST_TOKENS_A_BYTE)
        self._counts[self._bin] = 1
        self._total = 1
        self._above = 0  # readings in bins above that of the quantile
        self.value = _FIRST_TOKENS_A_BYTE

    def add(self, tokens_a_byte: float) -> None:
        number = _bin_of(_LEAST if tokens_a_byte < _LEAST else _MOST if tokens_a_byte > _MOST else tokens_a_byte)
        self._counts[number] += 1
        self._total += 1
        if number > self._bin:
            self._above += 1
        if self._total >= 2 * _READINGS_KEPT:
            self._counts = [count // 2 for count in self._counts]
            self._total = sum(self._counts)
            self._above = sum(self._counts[self._bin + 1 :])
        may_lie_above = self._total - ceil(self._total * _QUANTILE)
        before = self._bin
        while self._above > may_lie_above:
            self._bin += 1
            self._above -= self._counts[self._bin]
        while self._bin and self._above + self._counts[self._bin] <= may_lie_above:
            self._above += self._counts[self._bin]
            self._bin -= 1
        if self._bin != before:
            self.value = _upper_edge(self._bin)


def _bin_of(value: float) -> int:
    """The bin whose upper edge is the least that is not below `value`, which is between `_LEAST` and `_MOST`."""
    mantissa, exponent = frexp(value)  # value = mantissa * 2**exponent, mantissa in [0.5, 1)
    step = ceil((mantissa - 0.5) * 2 * _STEPS) - 1
    number = (exponent - 1 - _LOWEST_OCTAVE) * _STEPS + step
    return number if number > 0 else 0


def _upper_edge(number: int) -> float:
    octave, step = divmod(number, _STEPS)
    return float((1 + (step + 1) / _STEPS) * 2.0 ** (octave + _LOWEST_OCTAVE))
