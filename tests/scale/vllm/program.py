"""A vLLM in a process of its own that does what it is told, one JSON line at a time.

    python program.py REPLIES_FD < commands

Replies go to a pipe of their own: vLLM writes its log to the usual ones.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import sys
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.lora.request import LoRARequest
from vllm.v1 import kv_cache_interface
from vllm.v1.request import Request

from kdn.errors import BadConfig
from kdn.scale.vllm.version import check_version, installed_version


class Program:
    """One engine; each public method is a command."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.llm = LLM(**options)
        self._count = 0

    @property
    def _connector(self) -> Any:
        return get_kv_transfer_group()

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int = 8,
        salt: str | None = None,
        params: dict[str, Any] | None = None,
        lora: list[Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Answers to all prompts together, with the logarithms of their probabilities."""
        sampling = self._sampling(max_tokens, params)
        given = [self._prompt(prompt, salt) for prompt in prompts]
        request = None if lora is None else LoRARequest(*lora[:3], load_inplace=lora[3])
        outputs = self.llm.generate(given, sampling, use_tqdm=False, lora_request=request)
        return [
            {
                "tokens": list(one.outputs[0].token_ids),
                "logprobs": [
                    step[token].logprob
                    for step, token in zip(
                        one.outputs[0].logprobs, one.outputs[0].token_ids, strict=True
                    )
                ],
                "cached": one.num_cached_tokens,
                "reason": one.outputs[0].finish_reason,
            }
            for one in outputs
        ]

    def cancel(self, prompt: list[int], steps: int) -> bool:
        """Begin to answer, give up after some steps; did the engine come to rest?"""
        self._count += 1
        name, engine = f"cancelled-{self._count}", self.llm.llm_engine
        engine.add_request(name, self._prompt(prompt, None), self._sampling(50, None))
        for _ in range(steps):
            engine.step()
        engine.abort_request([name])
        scheduler = engine.engine_core.engine_core.scheduler
        for _ in range(100_000):
            if not scheduler.has_requests():  # a load that was cancelled ends, too
                break
            engine.step()
        return not scheduler.has_requests()

    def flush(self) -> bool:
        """Wait until what was saved is stored everywhere."""
        flushed: bool = self._connector.transfers.flush(30)
        return flushed

    def reset(self) -> bool:
        """Empty vLLM's own prefix cache."""
        return bool(self.llm.reset_prefix_cache())

    def reload(self, path: str) -> bool:
        """Other weights, as a training loop brings them: asleep, loaded, awake."""
        self.llm.sleep(level=2)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        return bool(self.llm.wake_up())

    def folder(self, model: str, download_dir: str) -> str:
        """Where the weights of a hub id are looked for."""
        from kdn.scale.vllm.engine import model_folder

        return str(model_folder(model, None, download_dir))

    def counts(self) -> dict[str, int]:
        """The connector's counters: those of its worker and of its scheduler."""
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler.connector
        sides = [self._connector.counts.total(), scheduler.counts.total()]
        return {name: sum(side[name] for side in sides) for name in sides[0]}

    def stored(self) -> dict[str, Any]:
        """What the store counted, and the tiers that do not answer."""
        stat = self._connector.store.stat()
        return {"corrupt": stat.corrupt, "blocks": stat.blocks, "open": list(stat.open_circuits)}

    def metrics(self) -> dict[str, float]:
        """kdn's counters as vLLM's /metrics has them."""
        from prometheus_client import REGISTRY

        return {
            sample.name: sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
            if "kdn" in sample.name
        }

    def signatures(self) -> dict[str, list[list[str]]]:
        """Of every method that the connector has from vLLM: its own parameters, and vLLM's."""
        from kdn.scale.vllm import KdnConnector

        found = {}
        for name in vars(KdnConnector):
            pair: list[Any] = [
                getattr(one, name, None) for one in (KdnConnector, KVConnectorBase_V1)
            ]
            if all(map(inspect.isroutine, pair)):
                found[name] = [list(inspect.signature(one).parameters) for one in pair]
        return found

    def connect(
        self,
        spec: str = "",
        more: dict[str, Any] | None = None,
        load_format: str = "auto",
        ranks: float = 1,
        **transfer: Any,
    ) -> bool:
        """Make another connector of this engine with other settings, as vLLM would at its start.

        Where `spec` is named, as for a model whose layers all have such a cache, with `more` of its fields.
        """
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        config, cache = copy.copy(scheduler.vllm_config), scheduler.kv_cache_config
        config.kv_transfer_config = dataclasses.replace(config.kv_transfer_config, **transfer)
        config.load_config = dataclasses.replace(config.load_config, load_format=load_format)
        config.parallel_config = copy.copy(config.parallel_config)
        config.parallel_config.tensor_parallel_size = ranks
        if spec:
            (group,) = cache.kv_cache_groups
            fields = {
                one.name: getattr(group.kv_cache_spec, one.name)
                for one in dataclasses.fields(kv_cache_interface.AttentionSpec)
            }
            kind = getattr(kv_cache_interface, spec)(**fields | (more or {}))
            group = dataclasses.replace(group, kv_cache_spec=kind)
            cache = dataclasses.replace(cache, kv_cache_groups=[group])
        KVConnectorFactory.create_connector(config, KVConnectorRole.SCHEDULER, cache).shutdown()
        return True

    def match(self, prompt: list[int]) -> list[Any]:
        """What the connector answers to vLLM's question for a new request: tokens, asynchronously?"""
        self._count += 1
        request = Request(f"matched-{self._count}", prompt, SamplingParams(max_tokens=1), None)
        connector = self.llm.llm_engine.engine_core.engine_core.scheduler.connector
        connector.on_new_request(request)
        found = list(connector.get_num_new_matched_tokens(request, 0))
        connector.request_finished(request, [])
        return found

    def refusal(self, version: str) -> str:
        """What is said to a version of vLLM; empty for one that is known."""
        try:
            check_version(version or installed_version())
        except BadConfig as error:
            return str(error)
        return ""

    def close(self) -> bool:
        """Shut down as vLLM does at its end."""
        if has_kv_transfer_group():
            self._connector.shutdown()
        return True

    def _prompt(self, token_ids: list[int], salt: str | None) -> TokensPrompt:
        salted: Any = {} if salt is None else {"cache_salt": salt}
        return TokensPrompt(prompt_token_ids=token_ids, **salted)

    def _sampling(self, max_tokens: int, params: dict[str, Any] | None) -> SamplingParams:
        extra = None if params is None else {"kv_transfer_params": params}
        return SamplingParams(
            max_tokens=max_tokens, temperature=0, logprobs=0, ignore_eos=True, extra_args=extra
        )


def main() -> None:
    """Answer commands until there are none."""
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as replies:
        program: Program | None = None
        for line in sys.stdin:
            name, options = json.loads(line)
            try:
                if program is None:
                    program, answer = Program(options), True
                else:
                    answer = getattr(program, name)(**options)
                reply: dict[str, Any] = {"answer": answer}
            except Exception as error:  # noqa: BLE001 the test is to see it
                reply = {"error": f"{type(error).__name__}: {error}"}
            replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
