"""The store: KV blocks by the tokens they were computed for, in tiers, verified on every read."""

from __future__ import annotations

from kdn.store.block import Block, block_ids, cut_blocks
from kdn.store.codecs import CODECS, Codec, NoCodec
from kdn.store.delivery import Delivery, Loss
from kdn.store.disk import DiskTier
from kdn.store.format import EncodedBlock, Header, encode_block
from kdn.store.index import BlockHit, Match
from kdn.store.line import LineSettings
from kdn.store.memory import MemoryTier
from kdn.store.notes import pack_note, read_note
from kdn.store.objects import ObjectRemote
from kdn.store.opening import FarSettings, open_store
from kdn.store.peer import PeerRemote
from kdn.store.policies import Policy, Rules, Use
from kdn.store.quality import CodecQuality, QualityRecord, load_record, save_record
from kdn.store.quotas import Quotas
from kdn.store.reader import Reader
from kdn.store.recording import LookupRecorder
from kdn.store.redis import RedisRemote
from kdn.store.remote import DictRemote, Listed, News, Remote
from kdn.store.remote_tier import RemoteSettings, RemoteTier
from kdn.store.seal import KeyRing, read_key_file
from kdn.store.stat import ScrubReport, StoreStat
from kdn.store.store import Store
from kdn.store.tier import Changes, Handle, Life, NoTier, Tier, TierUsage
from kdn.store.verdict import EstimateS, worth_loading
from kdn.store.whole import check_whole, read_whole

__all__ = [
    "CODECS",
    "Block",
    "BlockHit",
    "Changes",
    "Codec",
    "CodecQuality",
    "Delivery",
    "DictRemote",
    "DiskTier",
    "EncodedBlock",
    "EstimateS",
    "FarSettings",
    "Handle",
    "Header",
    "KeyRing",
    "Life",
    "LineSettings",
    "Listed",
    "LookupRecorder",
    "Loss",
    "Match",
    "MemoryTier",
    "News",
    "NoCodec",
    "NoTier",
    "ObjectRemote",
    "PeerRemote",
    "Policy",
    "QualityRecord",
    "Quotas",
    "Reader",
    "RedisRemote",
    "Remote",
    "RemoteSettings",
    "RemoteTier",
    "Rules",
    "ScrubReport",
    "Store",
    "StoreStat",
    "Tier",
    "TierUsage",
    "Use",
    "block_ids",
    "check_whole",
    "cut_blocks",
    "encode_block",
    "load_record",
    "open_store",
    "pack_note",
    "read_key_file",
    "read_note",
    "read_whole",
    "save_record",
    "worth_loading",
]
