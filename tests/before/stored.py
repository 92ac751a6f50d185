"""What the stored folders hold: written once by `record.py`, looked up and read by the tests."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import kdn
from kdn.core import EXACT, Cause, Recipe, Request
from kdn.errors import ForeignStore
from kdn.store import Block
from kdn.testing import write_tiny_model
from tests.before import seams
from tests.before.cases import BOAT, HEN, KEY, SECOND, accounting

ROWS = " ".join(f"Row {number} holds {number * 7} seeds." for number in range(12))
"""More than 256 tokens: two blocks."""
CODECS = ("none", "lossless", "fp8", "int8", "int4", "entropy-1", "entropy-4")
FOLDERS = ("store", "sealed", "codecs")
BLENDED = Recipe((Cause.BLEND,))


def thin(folder: Path) -> Path:
    """A tiny model with one KV head, so that the folders are small."""
    return write_tiny_model(
        folder, "llama", seed=4, max_position_embeddings=4096, num_key_value_heads=1
    )


def key_file(folder: Path) -> Path:
    """The key that `sealed/` was written with."""
    path = folder / "keys.toml"
    path.write_text(f'master = "{KEY}"\n', "utf-8")
    path.chmod(0o600)
    return path


def exact_requests(k: kdn.Kdn) -> list[Request]:
    """Two documents, one of two blocks, a turn that is kept, and a turn of a second tenant."""
    return [
        seams.request(k, "Where?", [HEN, BOAT], keep="all"),
        seams.request(k, "Which?", [ROWS]),
        seams.request(k, "Where?", keep="all", salt=SECOND),
    ]


def lossy_request(k: kdn.Kdn) -> Request:
    """What was written with int8, before anything else was stored."""
    return seams.request(k, "How many eggs are there, and who has counted them?", keep="all")


def put_tainted_copy(k: kdn.Kdn) -> None:
    """The turn of the second tenant as if a blend had left it: of another recipe, under no salt."""
    for entry in k.store.index.entries():
        if entry.family.salt != SECOND:
            continue
        copied = replace(entry.block_id(), recipe=BLENDED, salt="")
        reader = k.store.open(entry.block_id())
        assert reader is not None
        with reader:
            layers = range(reader.shape.num_layers)
            runs = tuple(memoryview(bytes(reader.layer(layer))) for layer in layers)
            k.store.put(Block(copied, reader.shape, runs))


def seen(model: Path, home: Path, folders: Path, work: Path) -> dict[str, Any]:
    """All that fp32 can see of the folders by who opens them. Uses the folders: give copies."""
    with seams.opened(model, home, store=folders / "store") as k:
        found: dict[str, Any] = {
            "blocks": seams.blocks(k),
            "checksums": checksums(k),
            "found": _found(k),
            "damaged": list(k.store.verify().corrupt),
        }
    with seams.opened(model, home, store=folders / "store") as k:
        found["took"] = _took(k)
    with seams.opened(model, home, store=folders / "store", codec="int8") as k:
        found["lossy"] = accounting(seams.run(k, seams.forgotten(lossy_request(k)))[0][1])
    keys = key_file(work)
    with seams.opened(model, home, store=folders / "sealed", key_file=keys) as k:
        asked = seams.request(k, "Say a word.", keep="nothing")
        found["sealed"] = {
            "blocks": seams.blocks(k),
            "checksums": checksums(k),
            "damaged": list(k.store.verify().corrupt),
            "took": accounting(seams.run(k, asked)[0][1]),
        }
    found["sealed, without the key"] = "opened"
    try:
        with seams.opened(model, home, store=folders / "sealed", audit=False):
            pass
    except ForeignStore as error:
        found["sealed, without the key"] = str(error).partition(": ")[2].partition(",")[0]
    return found


def seen_of_codecs(model: Path, home: Path, folder: Path) -> dict[str, Any]:
    """What can be seen of the folder with a block of every codec, in bf16. Uses it: give a copy."""
    with seams.opened(model, home, store=folder, dtype="bfloat16") as k:
        return {
            "blocks": seams.blocks(k),
            "checksums": checksums(k),
            "damaged": list(k.store.verify().corrupt),
        }


def _found(k: kdn.Kdn) -> dict[str, list[list[Any]]]:
    """By what is looked up: key, tokens and tier of every block that is found."""
    looked_up: dict[str, tuple[Recipe, str, Request]] = {}
    for number, request in enumerate(exact_requests(k)):
        looked_up[f"request {number}"] = (EXACT, request.salt, request)
    looked_up["a blend's"] = (BLENDED, "", exact_requests(k)[2])
    looked_up["a blend's, of another tenant"] = (BLENDED, "x", exact_requests(k)[0])
    looked_up["int8"] = (Recipe((Cause.CODEC,), "int8"), "", lossy_request(k))
    looked_up["int8, exactly"] = (EXACT, "", lossy_request(k))
    fingerprint = k.model.decoder.fingerprint
    return {
        name: [
            [hit.id.key, hit.num_tokens, hit.tier]
            for hit in k.store.match(fingerprint, recipe, salt, request.prompt.token_ids).hits
        ]
        for name, (recipe, salt, request) in looked_up.items()
    }


def _took(k: kdn.Kdn) -> list[dict[str, Any]]:
    """Where the tokens of the same prompts come from now."""
    asked = [seams.forgotten(request) for request in exact_requests(k)]
    found = [seams.run(k, one)[0] for one in asked]
    return [{"ids": [t.token_id for t in ts], **accounting(usage)} for ts, usage in found]


def checksums(k: kdn.Kdn) -> dict[str, dict[str, str]]:
    """By block key the SHA-256 of all its keys and of all its values, as they are decoded."""
    found: dict[str, dict[str, str]] = {}
    for entry in k.store.index.entries():
        keys, values = hashlib.sha256(), hashlib.sha256()
        reader = k.store.open(entry.block_id())
        assert reader is not None, f"{entry.key} is listed and cannot be opened"
        with reader:
            for layer in range(reader.shape.num_layers):
                k_part, v_part = reader.parts(layer)
                keys.update(k_part)
                values.update(v_part)
        found[entry.key] = {"k": keys.hexdigest(), "v": values.hexdigest()}
    return found
