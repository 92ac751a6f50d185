"""The store: KV blocks by the tokens they were computed for, in tiers, verified on every read."""

from __future__ import annotations

from kdn.store.block import Block, block_ids, cut_blocks
from kdn.store.codecs import CODECS, Codec, NoCodec
from kdn.store.disk import DiskTier
from kdn.store.format import EncodedBlock, Header, encode_block
from kdn.store.index import BlockHit, Match
from kdn.store.memory import MemoryTier
from kdn.store.policies import Policy, Rules
from kdn.store.quality import CodecQuality, QualityRecord, load_record, save_record
from kdn.store.reader import Reader
from kdn.store.recording import LookupRecorder
from kdn.store.stat import ScrubReport, StoreStat
from kdn.store.store import Store, open_store
from kdn.store.tier import Changes, Handle, NoTier, Tier, TierUsage

__all__ = [
    "CODECS",
    "Block",
    "BlockHit",
    "Changes",
    "Codec",
    "CodecQuality",
    "DiskTier",
    "EncodedBlock",
    "Handle",
    "Header",
    "LookupRecorder",
    "Match",
    "MemoryTier",
    "NoCodec",
    "NoTier",
    "Policy",
    "QualityRecord",
    "Reader",
    "Rules",
    "ScrubReport",
    "Store",
    "StoreStat",
    "Tier",
    "TierUsage",
    "block_ids",
    "cut_blocks",
    "encode_block",
    "load_record",
    "open_store",
    "save_record",
]
