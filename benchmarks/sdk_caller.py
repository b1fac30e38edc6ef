"""Calls by OpenAI's own SDK from a process of their own, which weighs itself: what an answer costs whom it is for.

Started by `benchmarks.streaming`. It makes a few short calls first, so that what the SDK imports and builds once is not
counted; says `{"warm": true}`; waits for a line; makes its calls, all at once; and says times and memory as one line of
JSON. A stream is read piece by piece and no piece is kept: what a caller keeps of it is the caller's own. The key is
the environment's `OPENAI_API_KEY`, the SDK's own way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time

import openai

from benchmarks.resident import Resident

WARM_TOKENS = 4


async def call(
    client: openai.AsyncOpenAI, prompt: str, tokens: int, extra: dict[str, object], *, stream: bool
) -> tuple[float, float, int]:
    """Seconds to the first and to the last character, and how many there were."""
    began = time.perf_counter()
    first, characters = 0.0, 0
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
    if stream:
        pieces = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=tokens, temperature=0, stream=True, extra_body=extra
        )
        async for piece in pieces:
            text = piece.choices[0].delta.content if piece.choices else None
            if text:
                first = first or time.perf_counter() - began
                characters += len(text)
        return first, time.perf_counter() - began, characters
    answer = await client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=tokens, temperature=0, extra_body=extra
    )
    last = time.perf_counter() - began
    return last, last, len(answer.choices[0].message.content or "")


async def weigh(asked: argparse.Namespace) -> dict[str, object]:
    """What the process says at its end: `idle_bytes`, `peak_bytes`, `first` and `last` (seconds), `characters`."""
    extra: dict[str, object] = {"ignore_eos": True}
    if asked.top_logprobs:
        extra |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    async with openai.AsyncOpenAI(base_url=asked.url, max_retries=0, timeout=1800) as client:
        for _ in range(3):
            await call(client, asked.prompt, WARM_TOKENS, extra, stream=asked.stream)
        gc.collect()
        print(json.dumps({"warm": True}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        memory = Resident(os.getpid())
        idle = memory.forget_peak()
        begun = (call(client, asked.prompt, asked.tokens, extra, stream=asked.stream) for _ in range(asked.at_once))
        calls = await asyncio.gather(*begun)
        return {
            "idle_bytes": idle,
            "peak_bytes": memory.peak_bytes(),
            "first": [first for first, _, _ in calls],
            "last": [last for _, last, _ in calls],
            "characters": sum(characters for _, _, characters in calls),
        }


def main() -> None:
    """Make the calls that the command line asks for, and say what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server, up to /v1")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--top-logprobs", type=int, default=0)
    parser.add_argument("--stream", action="store_true")
    print(json.dumps(asyncio.run(weigh(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
