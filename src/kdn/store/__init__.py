"""KV blocks by the tokens they were computed for, in tiers, verified on every read.

Trades in bytes of KV.  Reuse, serving, the API and commands import it; it imports no model and no torch.
Start reading at `store.py`, then `tiers/tier.py` and `block/format.py`.
"""

from __future__ import annotations

from kdn.store.block.cuts import block_ids, cut_blocks
from kdn.store.block.format import Block, EncodedBlock, Header, encode_block
from kdn.store.block.pieces import layers_together
from kdn.store.block.reader import Handle, Reader, check_whole, read_whole
from kdn.store.codecs import CODECS, Codec, NoCodec
from kdn.store.index.index import BlockHit, Match
from kdn.store.loads import open_leading, open_runs
from kdn.store.open import FarSettings, open_store
from kdn.store.policies import EvictionPolicy, Rules, Use
from kdn.store.settings import StoreConfig
from kdn.store.store import ScrubReport, Store, StoreStat
from kdn.store.stream.delivery import Delivery, Loss
from kdn.store.tenants.tenancy import Quotas
from kdn.store.tiers.disk.disk import DiskTier
from kdn.store.tiers.memory import MemoryTier
from kdn.store.tiers.remote.calls import RemoteCallSettings
from kdn.store.tiers.remote.client import Listed, Remote, RemoteChanges
from kdn.store.tiers.remote.entry_bytes import pack_note, read_note
from kdn.store.tiers.remote.objects import ObjectRemote
from kdn.store.tiers.remote.peer import PeerRemote
from kdn.store.tiers.remote.redis import RedisRemote
from kdn.store.tiers.remote.tier import RemoteSettings, RemoteTier
from kdn.store.tiers.seal import KeyRing, read_key_file
from kdn.store.tiers.tier import BlockLife, Changes, ManagedTier, Tier, TierUsage
from kdn.store.traces.recording import LookupRecorder

__all__ = [
    "CODECS",
    "Block",
    "BlockHit",
    "BlockLife",
    "Changes",
    "Codec",
    "Delivery",
    "DiskTier",
    "EncodedBlock",
    "EvictionPolicy",
    "FarSettings",
    "Handle",
    "Header",
    "KeyRing",
    "Listed",
    "LookupRecorder",
    "Loss",
    "ManagedTier",
    "Match",
    "MemoryTier",
    "NoCodec",
    "ObjectRemote",
    "PeerRemote",
    "Quotas",
    "Reader",
    "RedisRemote",
    "Remote",
    "RemoteCallSettings",
    "RemoteChanges",
    "RemoteSettings",
    "RemoteTier",
    "Rules",
    "ScrubReport",
    "Store",
    "StoreConfig",
    "StoreStat",
    "Tier",
    "TierUsage",
    "Use",
    "block_ids",
    "check_whole",
    "cut_blocks",
    "encode_block",
    "layers_together",
    "open_leading",
    "open_runs",
    "open_store",
    "pack_note",
    "read_key_file",
    "read_note",
    "read_whole",
]
