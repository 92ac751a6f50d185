"""Minutes of random requests, cancellations, damage and restarts; every answer must be the cold one.

The store's caps are small, so that blocks are evicted all the time.  Every few rounds a byte of a
stored file is flipped, and the store is closed and opened again.  After each round the books are
audited, and one greedy answer is compared with what a full prefill gives.

python scripts/soak.py --minutes 10 --seed 3
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import kdn
from kdn.api.answers import collect
from kdn.config import Config, StoreConfig, home_folder
from kdn.core import FinishReason, Request, Retention, Sampling
from kdn.corpus import corpus_files
from kdn.model import Document, Message

QUESTIONS = ("What is this about?", "Name a rule.", "Give an example.", "Who wrote it?")
ROUNDS_PER_LIFE = 6


class Soak:
    """One run: a folder, a seed, and counts of what happened."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._config = Config(
            home=home_folder(os.environ),
            store=StoreConfig(
                folder=folder / "store", disk_bytes=192 * 2**20, memory_bytes=48 * 2**20
            ),
        )
        self._texts = [path.read_text("utf-8") for path in corpus_files()]
        self.counts: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Lives of the program, one after another, until the time is over."""
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            with kdn.open(config=self._config) as service:
                self.counts["lives"] += 1
                for _ in range(ROUNDS_PER_LIFE):
                    if time.monotonic() >= stop:
                        break
                    self._round(service)
            self._damage()

    def _round(self, service: kdn.Kdn) -> None:
        requests = [self._request(service) for _ in range(self._random.randint(1, 6))]
        streams = [service.submit(request) for request in requests]
        for stream in streams:
            if self._random.random() < 0.2:
                stream.cancel()
        answers = [collect(stream) for stream in streams]
        self.counts["requests"] += len(answers)
        self.counts["reused tokens"] += sum(answer.usage.exact for answer in answers)
        for request, answer in zip(requests, answers, strict=True):
            if answer.finish_reason is FinishReason.CANCELLED:
                self.counts["cancelled"] += 1
            elif self._random.random() < 0.3:
                self._compare(service, request, answer.token_ids)
        service.store.flush()
        service.check()

    def _compare(self, service: kdn.Kdn, request: Request, token_ids: tuple[int, ...]) -> None:
        cold = replace(request, id=f"{request.id}-cold", reuse=False, retention=Retention.NOTHING)
        wanted = collect(service.submit(cold)).token_ids
        assert token_ids == wanted, f"an answer changed: {token_ids} is not {wanted}"
        self.counts["compared"] += 1

    def _request(self, service: kdn.Kdn) -> Request:
        documents = []
        for _ in range(self._random.randint(0, 2)):
            text = self._random.choice(self._texts)
            at = 1500 * self._random.randrange(3)
            documents.append(Document(None, text[at : at + 1500]))
        message = Message("user", self._random.choice(QUESTIONS))
        sampling = Sampling(max_tokens=self._random.randint(1, 24))
        retention = self._random.choice(list(Retention))
        return replace(
            service.prompts.request([message], documents, sampling=sampling), retention=retention
        )

    def _damage(self) -> None:
        """Flip a bit of some stored file, as a bad disk would."""
        files = sorted(self._config.store_folder.rglob("*.kdn"))
        if files and self._random.random() < 0.5:
            victim = self._random.choice(files)
            data = bytearray(victim.read_bytes())
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            victim.write_bytes(data)
            self.counts["damaged"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdn-soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        soak.run(60 * options.minutes)
    print(", ".join(f"{count} {name}" for name, count in sorted(soak.counts.items())))


if __name__ == "__main__":
    main()
