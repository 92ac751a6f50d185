"""A model's files turned into tensors, a tokenizer, and one decoder that is cut at attention.

It trades in folders and GGUF files, token ids, and rows of hidden states.  The engine and the rooms above it
may import it.  Start reading at `load.py`, then `decoder.py`; foreign files are judged in `folder.py`,
`gguf/`, `lora.py` and `text/`.
"""

from __future__ import annotations

from kdn.model.catalogue import KnownModel, get, known_models, name_of_model, resolve
from kdn.model.config import ModelConfig, RopeConfig
from kdn.model.decoder import Decoder, DecoderLayer
from kdn.model.load import LoadedModel, load_model, pick_device, pick_dtype
from kdn.model.lora import AdapterRun, LoraAdapter, load_adapter
from kdn.model.rope import Rope
from kdn.model.text.chat import (
    NEUTRAL_SYSTEM,
    ChatOptions,
    ChatTemplate,
    Document,
    Message,
)
from kdn.model.text.grammar import Grammar, GrammarMatcher, Grammars
from kdn.model.text.places import PlacedText
from kdn.model.text.tokenizer import Incremental, Tokenizer
from kdn.model.text.tools import CallReader, Tool, ToolCall, ToolFormat, is_object

__all__ = [
    "NEUTRAL_SYSTEM",
    "AdapterRun",
    "CallReader",
    "ChatOptions",
    "ChatTemplate",
    "Decoder",
    "DecoderLayer",
    "Document",
    "Grammar",
    "GrammarMatcher",
    "Grammars",
    "Incremental",
    "KnownModel",
    "LoadedModel",
    "LoraAdapter",
    "Message",
    "ModelConfig",
    "PlacedText",
    "Rope",
    "RopeConfig",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "ToolFormat",
    "get",
    "is_object",
    "known_models",
    "load_adapter",
    "load_model",
    "name_of_model",
    "pick_device",
    "pick_dtype",
    "resolve",
]
