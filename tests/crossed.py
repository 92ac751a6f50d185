"""Serves a tiny model, asks it about one document, and prints which files of kdn an answer enters.

    python -m tests.crossed FOLDER

Two questions come first, so that imports and first uses are over; then functions that any thread calls
are noted while a third is answered and its KV is written.  JSON goes out: calls by file.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

import httpx

import kdn
from kdn.config import load_config
from kdn.serve import ServeSettings, create_app, listen, make_server, served, url_of
from kdn.testing import write_tiny_model

PACKAGE = str(Path(kdn.__file__).parent) + "/"
DOCUMENT = "Hold the red button for ten seconds to reset the controller. " * 8
QUESTIONS = ("How do I reset it?", "Which button?", "For how many seconds must it be held?")


class Calls:
    """Counts the calls of the package's functions by file, while `is_counting`."""

    def __init__(self) -> None:
        self.is_counting = False
        self.by_file: Counter[str] = Counter()

    def note(self, frame: FrameType, event: str, _argument: object) -> None:
        """As `sys.setprofile` calls it."""
        if self.is_counting and event == "call":
            name = frame.f_code.co_filename
            if name.startswith(PACKAGE):
                self.by_file[name.removeprefix(PACKAGE)] += 1


def main(folder: Path) -> None:
    """Serve, ask three times, and print what the third answer entered."""
    calls = Calls()
    threading.setprofile(calls.note)
    sys.setprofile(calls.note)
    # Whole panels of 32, as real vocabularies have, and heads of 64: compiled code computes all of it.
    model = write_tiny_model(
        folder / "model", "llama", max_position_embeddings=2048, vocab_size=288, head_dim=64
    )
    settings = ServeSettings(port=0)
    with kdn.open(model, config=load_config({}, home=folder / "home")) as service:
        listening = listen(settings)
        server = make_server(create_app(served(service), settings), settings, log_level="warning")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with httpx.Client(base_url=url_of(listening), timeout=60) as http:
            for question in QUESTIONS:
                calls.is_counting = question == QUESTIONS[-1]
                answer = http.post("/v1/chat/completions", json=asked(question))
                answer.raise_for_status()
                service.store.flush()
        calls.is_counting = False
        server.should_exit = True
        thread.join()
    cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    sys.stdout.write(json.dumps({"cached_tokens": cached, "calls": calls.by_file}))


def asked(question: str) -> dict[str, object]:
    """The body of a chat about the document."""
    return {
        "max_tokens": 8,
        "temperature": 0,
        "documents": [{"id": "manual", "text": DOCUMENT}],
        "messages": [{"role": "user", "content": question}],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
