"""The only file of this folder that knows names which a rebuilding of kdn may change.

What was recorded must stay; how it is reached may change, and then it changes here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import kdn
from kdn.api import blending
from kdn.clock import ManualClock
from kdn.config import BlendConfig, Config, EngineConfig, LibraryConfig, StoreConfig
from kdn.core import (
    AllRows,
    Choose,
    Finish,
    GivenRows,
    Plan,
    Prefix,
    Request,
    Retention,
    RowRule,
    Sampling,
    Token,
    Usage,
)
from kdn.reuse.codec_quality import CodecQuality, QualityRecord, save_record
from kdn.serve import served
from kdn.testing import write_tiny_model
from kdn.trace import Recorder
from tests.serve.running import Running, running

SLOW_LINK_S = 1000.0


@contextmanager
def opened(
    model: str | Path,
    home: Path,
    *,
    store: Path | None = None,
    dtype: str = "float32",
    adapters: dict[str, Path] | None = None,
    library: Path | None = None,
    engine: dict[str, Any] | None = None,
    audit: bool = True,
    drift: float = 0.0,
    int8: bool = False,
    **store_options: Any,
) -> Iterator[kdn.Kdn]:
    """A Kdn whose clock stands still: no decision depends on how fast the machine is."""
    config = Config(
        home=home,
        engine=EngineConfig(kv_budget_bytes=1 << 28, fit_idle_s=0, **(engine or {})),
        store=StoreConfig(folder=store, disk_bytes=1 << 28, memory_bytes=1 << 27, **store_options),
        blend=BlendConfig(key_bias=drift, guard_every=0),
        library=LibraryConfig(folder=library),
    )
    with kdn.open(
        model,
        config=config,
        dtype=dtype,
        device="cpu",
        adapters=adapters,
        int8=int8,
        clock=ManualClock(),
        trace=Recorder(keep=1 << 20),
    ) as k:
        yield k
        if audit:  # which takes a block that no key opens for a mistake of the index
            k.check()


def tiny(folder: Path, family: str = "llama") -> Path:
    """The tiny model that most was recorded with: 512 bytes of KV a token in fp32."""
    return write_tiny_model(folder, family, seed=3, max_position_embeddings=4096)


def tiny_adapter(folder: Path) -> Path:
    """A LoRA on the tiny model's queries and values, in PEFT's format."""
    folder.mkdir(parents=True)
    random, tensors = torch.Generator().manual_seed(11), {}
    for layer in range(2):
        for module, out in (("q_proj", 64), ("v_proj", 32)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{at}.lora_A.weight"] = torch.randn(4, 64, generator=random) / 8
            tensors[f"{at}.lora_B.weight"] = torch.randn(out, 4, generator=random) / 2
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def measured(k: kdn.Kdn, kl: float) -> None:
    """Write down that the int8 codec moves this model's answers by `kl`."""
    fingerprint = k.model.decoder.fingerprint
    quality = CodecQuality(kl=kl, kl_p99=kl, changed_share=0, gain=3)
    record = QualityRecord(
        model=k.name, fingerprint=fingerprint, positions=400, context_tokens=512, wall_s=0,
        kl_wrong_document=1, kl_no_context=1, codecs={"int8": quality},
    )  # fmt: skip
    save_record(k.config.home, record)


def slow_disk(k: kdn.Kdn) -> None:
    """Say that the disk gave one byte in a thousand seconds."""
    k.store.links.note("disk", 1, SLOW_LINK_S)


def request(
    k: kdn.Kdn,
    question: str,
    documents: Sequence[str] = (),
    *,
    max_tokens: int = 4,
    blend: bool = False,
    ratio: float | None = None,
    keep: str = "shared",
    max_kl: float | None = None,
    reuse: bool = True,
    salt: str = "",
    adapter: str | None = None,
    group: str | None = None,
    group_size: int = 1,
) -> Request:
    """A request with greedy sampling and the alternatives of every token."""
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True, logprobs=2)
    made = k.prompts.request(
        question, tuple(documents), sampling=sampling, salt=salt, adapter=adapter
    )
    return replace(
        made,
        retention=Retention(keep),
        techniques=(Prefix(max_kl), *(blending("blend", ratio) if blend else ())),
        reuse=reuse,
        group=group,
        group_size=group_size,
    )


def forgotten(asked: Request) -> Request:
    """The same request, of which nothing is stored."""
    return replace(asked, retention=Retention.NOTHING)


def said(k: kdn.Kdn, question: str, sampling: Sampling, keep: str = "all") -> kdn.Answer:
    """An answer by the public verb."""
    return k.generate(question, sampling=sampling, retention=Retention(keep))


def run(k: kdn.Kdn, *requests: Request) -> list[tuple[list[Token], Usage]]:
    """Answers to requests that are under way together; then all that they leave to be done is done."""
    streams = [k.submit(one) for one in requests]
    answers = []
    for stream in streams:
        *tokens, finish = list(stream)
        assert isinstance(finish, Finish)
        answers.append(([one for one in tokens if isinstance(one, Token)], finish.usage))
    k.catch_up()
    k.store.flush()
    return answers


def planned(k: kdn.Kdn, asked: Request) -> dict[str, Any]:
    """What the planner decides for a request, in plain words and numbers. Runs nothing."""
    assert isinstance(k.trace, Recorder)
    before = k.trace.count("store.hit")
    found = k.parts.planner.plan(asked)
    hits = k.trace.events("store.hit")[before:]
    plan, seen = found.plan, {}
    if plan.prefix is not None:
        plan.prefix.close()
    for stored in plan.stored:
        stored.source.close()
    if plan.then is not None:
        seen = {"then": _columns_and_rows(plan.then())}
    return {
        "exact": found.exact,
        "blended": found.blended,
        "lossy": found.lossy,
        "tiers": dict(sorted(found.tiers.items())),
        "prefix_tokens": plan.num_prefix,
        "opened": [f"{str(hit.fields['key'])[:12]} {hit.fields['tokens']}" for hit in hits],
        **_columns_and_rows(plan),
        **seen,
    }


def _columns_and_rows(plan: Plan) -> dict[str, Any]:
    rows = [_rule(plan.rule(layer)) for layer in range(2)]
    keep = plan.keep and {"num_tokens": plan.keep.num_tokens, "recipe": plan.keep.recipe.name}
    return {
        "stored": [[run.start, run.stop] for run in plan.stored],
        "rows": rows,
        "scaled_columns": [len(scale.columns) for scale in plan.scale],
        "observers": len(plan.observers),
        "keep": keep,
    }


def _rule(rule: RowRule) -> str:
    match rule:
        case AllRows():
            return "all"
        case GivenRows(positions):
            return f"{len(positions)} given"
        case Choose(count=count):
            return f"{count} chosen"


def blocks(k: kdn.Kdn) -> list[dict[str, Any]]:
    """Every stored block: what it is of, for whom, how it was made, and where it lies."""
    listed = [
        {
            "key": one.key,
            "salt": one.family.salt,
            "recipe": one.family.recipe.name,
            "start": one.start,
            "num_tokens": one.num_tokens,
            "tiers": list(k.store.tiers.where(one.key)),
        }
        for one in k.store.index.entries()
    ]
    return sorted(listed, key=lambda one: (one["salt"], one["recipe"], one["start"], one["key"]))


def serving(k: kdn.Kdn) -> AbstractContextManager[Running]:
    """A real server over `k` on a free port of loopback."""
    return running(served(k))
