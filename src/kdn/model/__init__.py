"""The tensors: configurations, weights, tokenizers, and one decoder that is cut at attention."""

from __future__ import annotations

from kdn.model.catalogue import KnownModel, get, known_models, resolve
from kdn.model.config import ModelConfig, RopeConfig
from kdn.model.decoder import Decoder, DecoderLayer
from kdn.model.load import LoadedModel, load_model, pick_device, pick_dtype
from kdn.model.lora import AdapterRun, LoraAdapter, load_adapter
from kdn.model.rope import Rope
from kdn.model.text.chat import NEUTRAL_SYSTEM, ChatTemplate, Document, Message
from kdn.model.text.remembered import Remembered
from kdn.model.text.tokenizer import Incremental, Tokenizer

__all__ = [
    "NEUTRAL_SYSTEM",
    "AdapterRun",
    "ChatTemplate",
    "Decoder",
    "DecoderLayer",
    "Document",
    "Incremental",
    "KnownModel",
    "LoadedModel",
    "LoraAdapter",
    "Message",
    "ModelConfig",
    "Remembered",
    "Rope",
    "RopeConfig",
    "Tokenizer",
    "get",
    "known_models",
    "load_adapter",
    "load_model",
    "pick_device",
    "pick_dtype",
    "resolve",
]
