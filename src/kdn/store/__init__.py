"""The store: KV blocks by the tokens they were computed for, in tiers, verified on every read."""

from __future__ import annotations

from kdn.store.block import Block, block_ids, cut_blocks
from kdn.store.codec import CODECS, Codec, NoCodec
from kdn.store.disk import DiskTier
from kdn.store.format import EncodedBlock, Header, encode_block
from kdn.store.index import BlockHit, Match
from kdn.store.memory import MemoryTier
from kdn.store.policies import Policy, Rules, Use
from kdn.store.reader import Reader
from kdn.store.recording import LookupRecorder
from kdn.store.stat import ScrubReport, StoreStat
from kdn.store.store import Store, open_store
from kdn.store.tier import Changes, Handle, Life, NoTier, Tier, TierUsage

__all__ = [
    "CODECS",
    "Block",
    "BlockHit",
    "Changes",
    "Codec",
    "DiskTier",
    "EncodedBlock",
    "Handle",
    "Header",
    "Life",
    "LookupRecorder",
    "Match",
    "MemoryTier",
    "NoCodec",
    "NoTier",
    "Policy",
    "Reader",
    "Rules",
    "ScrubReport",
    "Store",
    "StoreStat",
    "Tier",
    "TierUsage",
    "Use",
    "block_ids",
    "cut_blocks",
    "encode_block",
    "open_store",
]
