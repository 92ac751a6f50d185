"""Many answers awaited together, and one read as it comes.

python examples/together.py
"""

import asyncio
import os

import kdn


async def main() -> None:
    async with await kdn.AsyncKdn.open(os.environ.get("EXAMPLE_MODEL", "smollm2-135m")) as k:
        questions = ["Who are you?", "What is a tab?", "What is a key?"]
        answers = await asyncio.gather(*(k.generate(one, max_tokens=8) for one in questions))
        for question, answer in zip(questions, answers, strict=True):
            print(f"{question} {answer}")
        async for piece in k.stream("Count to three.", max_tokens=8):
            print(piece, end="", flush=True)
        print()


asyncio.run(main())
