"""The bodies of requests: prompts of an asked size as JSON, ready to be sent, made from text that was laid out before.

A prompt is a row of common English words, each of which is one token in the usual byte-pair vocabularies (and in those
of this project's own pods), so that the tokens a server reports come near those asked for without a tokenizer here.
Each begins with the call's nonce: no two prompts share a beginning, so no cache of prefixes answers in the model's
place unless a `shared_prefix` asks for that; then the tenant's common words come first, and the nonce after them.

Counted in are the tokens that a chat template adds, as far as one can know: eight for one message of the user's and the
opened answer (Qwen's and the simulator's 8, Llama 3's 10, the small llama.cpp model's 4); a system prompt that a
template brings is not. A prompt that is asked to be shorter than template and nonce is as short as it can be.
"""

from __future__ import annotations

from array import array
from random import Random
from zlib import crc32

import msgspec

from loadtest.scenario import Target, Tenant

TEMPLATE_TOKENS = {"chat": 8, "completions": 0}

# Each is one token, with its blank, for GPT-2, cl100k and o200k, Qwen, DeepSeek, Mistral (SentencePiece and Tekken),
# the small llama.cpp model and the simulator, which would part a word of more than seven letters.
_WORDS = """
about and another answer are as asked at be bear behind bell between blue boat book brave brief bright but by call
called calm came can car carried cat clear clever client clock coin cold count covered day did do dog each earth eight
even evening every explain fall fell felt fire first five fixed flow for forest forgot found four friend from
garden gate gentle give go going gone good ground grow happy hard has he hear heard heavy help home hope horse
idea in instead is it keep key kind know land last learned let letter light lived long looked lost main make many map
market me means met mill model more morning moved much named near never night not of old on once one only open opened
or over painted piece plant please poem proud quiet rain red request river rose run said sat sea send
sent server share shared shell short simple six sky slow small so soft sound stone story strange strong sun sure talked
tell text that the there they things three time tired to token too two under until up upon very village wait walked
want warm was water way well went were wheel when while who wind with words you
"""
_LAID_OUT_WORDS = 8192


class Prompts:
    """The bodies of one tenant's calls, all of its own text: two tenants share no beginnings either."""

    def __init__(self, target: Target, tenant: Tenant, seed: int) -> None:
        fixed: dict[str, object] = {"model": tenant.model or target.model, "stream": target.stream}
        if target.stream and target.usage != "off":
            fixed["stream_options"] = {"include_usage": True}
        fixed |= target.body
        self._head = msgspec.json.encode(fixed)[:-1]
        # The limit may be sent under its newer name, and then some servers refuse the older one beside it.
        self._has_limit = not {"max_tokens", "max_completion_tokens"} & target.body.keys()
        is_chat = target.endpoint == "chat"
        self._has_prompt = ("messages" if is_chat else "prompt") not in target.body
        self._open = b',"messages":[{"role":"user","content":"' if is_chat else b',"prompt":"'
        self._close = b'"}]}' if is_chat else b'"}'
        self._template_tokens = TEMPLATE_TOKENS[target.endpoint]
        self._shared = tenant.shared_prefix
        # One text twice, so that any stretch of at most its length is one slice, wherever it begins.
        words = _WORDS.split()
        chosen = Random(f"{seed}/{tenant.name}/prompts").choices(words, k=_LAID_OUT_WORDS) * 2
        self._text = "".join(f" {word}" for word in chosen).encode()
        self._starts = array("I", [0])
        for word in chosen:
            self._starts.append(self._starts[-1] + 1 + len(word))

    def body(self, nonce: str, input_tokens: int, output_tokens: int) -> bytes:
        """The whole JSON body of a call of that size; the same arguments always give the same bytes.

        `nonce` is any text, short and unlike any other; it is taken for one token for each two characters. About 3 µs
        at 1,000 tokens.
        """
        limit = b',"max_tokens":%d' % output_tokens if self._has_limit else b""
        if not self._has_prompt:
            return b"%b%b}" % (self._head, limit)
        mark = msgspec.json.encode(nonce)[1:-1]
        own = max(0, input_tokens - self._template_tokens)
        start = crc32(mark) % _LAID_OUT_WORDS
        left = max(0, own - (len(nonce) + 1) // 2)
        shared = min(left, round(self._shared * own))
        if shared:
            # A template may strip a leading blank, and the first word is a token without it, too.
            mark = b"%b %b" % (self._words(0, shared)[1:], mark)
        rest = self._words(start, left - shared)
        return b"".join((self._head, limit, self._open, mark, rest, self._close))

    def _words(self, start: int, count: int) -> bytes:
        """So many words of the text from the one numbered `start` on, each with a blank before it."""
        starts = self._starts
        if count <= _LAID_OUT_WORDS:
            return self._text[starts[start] : starts[start + count]]
        rounds, count = divmod(count, _LAID_OUT_WORDS)
        once = self._text[starts[start] : starts[start + _LAID_OUT_WORDS]]
        return once * rounds + self._text[starts[start] : starts[start + count]]
