"""Stored KV that has to be there in time: a node sends it smaller when the link is slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdn
from kdn.clock import ManualClock
from kdn.config import Config, StoreConfig
from kdn.core import BlockKey, KvShape
from kdn.errors import CorruptBlock
from kdn.reuse.codec_quality import CodecQuality, QualityRecord, save_record
from kdn.store import (
    Block,
    Delivery,
    Handle,
    Loss,
    MemoryTier,
    PeerRemote,
    RemoteCallSettings,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
    open_store,
)
from kdn.store.block.reader import BytesHandle
from kdn.store.links import Links
from kdn.store.stream.delivery import AS_STORED
from kdn.store.stream.transcode import decode_layers, encode_layers
from kdn.trace import NoTrace, Recorder
from tests.store.helpers import block_id
from tests.store.remotes import node_server
from tests.store.throttle import Link, throttled

SHAPE = KvShape(num_layers=8, num_kv_heads=2, head_dim=64, dtype="bfloat16")
"""512 bytes for a token at a layer: 128 KiB a layer of a block, 1 MiB a block."""
PROMPT = tuple(range(1024))
IDS = [block_id(PROMPT[at : at + 256], PROMPT[:at]) for at in range(0, 1024, 256)]
MB = 1e6
LOSSES = {"int8": Loss(0.01, 0.52), "int4": Loss(0.2, 0.27)}


@cache
def kv_block(number: int) -> Block:
    values = np.random.default_rng(number).normal(size=(8, 2 * 256 * 128)).astype(np.float32)
    runs = (values.view(np.uint32) >> 16).astype(np.uint16)
    return Block(IDS[number], SHAPE, tuple(memoryview(run.tobytes()) for run in runs))


@dataclass(frozen=True)
class World:
    """An engine's store behind a link to a node that holds four blocks."""

    store: Store
    clock: ManualClock
    link: Link
    trace: Recorder

    def load(self, within_s: float, losses: dict[str, Loss]) -> tuple[list[str], float]:
        """Load all four, layer by layer: the levels in order, and the seconds it took."""
        store, began_s, levels = self.store, self.clock.now(), []
        store.links.note("peer", 1, 1 / self.link._bytes_per_s(0))
        delivery = Delivery(
            within_s=within_s,
            num_tokens=1024,
            links=store.links,
            allowed=losses,
            on_read=lambda _key, _first, _last, level, _size: levels.append(level),
        )
        with ExitStack() as stack:
            readers = [store.open(one, delivery) for one in IDS]
            assert all(readers)
            for reader in readers:
                assert reader is not None
                stack.enter_context(reader)
            for layer in range(SHAPE.num_layers):
                for number, reader in enumerate(readers):
                    assert reader is not None
                    self._check(bytes(reader.layer(layer)), number, layer, levels[-1])
        assert sum(delivery.sizes.values()) <= self.link.size_bytes
        return levels, self.clock.now() - began_s

    def _check(self, got: bytes, number: int, layer: int, level: str) -> None:
        wanted = bytes(kv_block(number).layers[layer])
        if level in (AS_STORED, "lossless"):
            assert got == wanted
            return
        off = np.abs(_floats(got) - _floats(wanted))
        assert off.max() < (0.05 if level == "int8" else 0.8), level


def _floats(run: bytes) -> np.ndarray:
    return (np.frombuffer(run, np.uint16).astype(np.uint32) << 16).view(np.float32)


@contextmanager
def world(folder: Path, bytes_per_s: Callable[[int], float]) -> Iterator[World]:
    clock, trace = ManualClock(), Recorder()
    link = Link(clock, bytes_per_s)
    with ExitStack() as stack:
        node = stack.enter_context(open_store(folder, disk_bytes=10**9))
        for number in range(4):
            node.put(kv_block(number))
        url = stack.enter_context(throttled(stack.enter_context(node_server(node)), link))
        settings = RemoteSettings(RemoteCallSettings(timeout_s=1000), read_bytes=1, poll_s=1e9)
        peer = RemoteTier(PeerRemote(url, timeout_s=20), settings, clock, NoTrace(), Random(1))
        memory = MemoryTier(10**9, NoTrace())
        store = stack.enter_context(Store([memory], far=[peer], clock=clock, trace=trace))
        yield World(store, clock, link, trace)
        store.check()


@pytest.mark.parametrize(
    ("within_s", "losses", "first", "lowest"),
    [
        (10.0, LOSSES, AS_STORED, AS_STORED),  # 4 MiB at 1 MB/s take 4.2 s
        (2.5, LOSSES, "int8", "int8"),  # half of it takes 2.2 s
        (1.4, LOSSES, "int4", "int4"),  # a quarter of it 1.1 s
        (2.5, {}, "lossless", "lossless"),  # no leave to lose: late, and exact
    ],
)
def test_the_level_is_the_best_that_is_in_time(
    within_s: float, losses: dict[str, Loss], first: str, lowest: str, tmp_path: Path
) -> None:
    """Time that smaller reads leave over is spent on better ones towards the end."""
    order = [AS_STORED, "lossless", "int8", "int4"]
    with world(tmp_path, lambda _: MB) as one:
        found, seconds = one.load(within_s, losses)
        assert (found[0], max(found, key=order.index)) == (first, lowest)
        assert (seconds <= within_s) is bool(losses)


def test_the_level_goes_down_when_the_link_slows_midway(tmp_path: Path) -> None:
    """Two of four MiB come at 4 MB/s; the rest would take 4.2 s at the 0.5 MB/s that follow."""

    def slowing(so_far: int) -> float:
        return 4 * MB if so_far < 2 << 20 else MB / 2

    with world(tmp_path / "with", slowing) as one:
        levels, seconds = one.load(2.5, LOSSES)
        assert levels[0] == AS_STORED
        assert levels[-1] in LOSSES
        assert seconds <= 2.5
    with world(tmp_path / "without", slowing) as one:
        assert one.load(2.5, {})[1] > 2.5


def a_delivery(
    clock: ManualClock, within_s: float, num_blocks: int
) -> tuple[Callable[[int], AbstractContextManager[str]], Links]:
    """Over a link of 1 MB/s: reads of whole blocks, of 256 tokens and 1 MB each."""
    links = Links(clock)
    links.note("peer", 1_000_000, 1.0)
    losses = {"int8": Loss(0.01, 0.5), "int4": Loss(0.2, 0.25)}
    delivery = Delivery(within_s=within_s, num_tokens=256 * num_blocks, links=links, allowed=losses)

    def read(number: int) -> AbstractContextManager[str]:
        sizes = 1e6 / 256, 1e6 / 256
        return delivery.reading("peer", (BlockKey(str(number)), 0), 256, sizes)

    return read, links


def test_reads_side_by_side_are_in_time_together() -> None:
    """Each alone would take 1 s as it is stored. All eight have 2 s, which are 0.25 MB for each."""
    read, _ = a_delivery(ManualClock(), 2.0, 8)
    with ExitStack() as running:
        assert [running.enter_context(read(number)) for number in range(8)] == ["int4"] * 8


def test_a_read_leaves_those_beside_it_what_they_were_promised() -> None:
    """Two of eight take 2 MB at 2 MB/s, when 8 MB are in time. At 1 MB/s there are 2 MB for the other six:
    0.25 MB each are, and 0.5 MB are not."""
    read, links = a_delivery(ManualClock(), 4.0, 8)
    links.note("peer", 2_000_000, 1.0)
    with read(0) as one, read(1) as other:
        assert (one, other) == (AS_STORED, AS_STORED)
        links.note("peer", 1_000_000, 1.0)
        with read(2) as third:
            assert third == "int4"


def test_what_has_come_of_the_reads_beside_it_is_owed_no_more() -> None:
    """After 1 s two blocks have 1 MB still to come, and the other two the 2 MB of the 2 s after that."""
    clock = ManualClock()
    read, _ = a_delivery(clock, 4.0, 4)
    with read(0), read(1):
        clock.advance(1.0)
        with read(2) as third, read(3) as fourth:
            assert (third, fourth) == (AS_STORED, AS_STORED)


def test_a_read_that_failed_is_owed_nothing() -> None:
    """One of two failed before a byte came: beside the other's 1 MB the link has 3 MB in time, for three."""
    read, _ = a_delivery(ManualClock(), 4.0, 4)
    with read(0):
        with suppress(CorruptBlock), read(1):
            raise CorruptBlock("it went away")
        with read(1) as again:
            assert again == AS_STORED


def test_what_came_with_loss_never_becomes_the_block(tmp_path: Path) -> None:
    """It is counted by level, and a caller without a deadline gets every bit."""
    with world(tmp_path, lambda _: MB) as one:
        assert set(one.load(0.01, LOSSES)[0]) <= {"int4"}
        for number, block in enumerate(IDS):
            reader = one.store.open(block)
            assert reader is not None
            with reader:
                assert reader.tier == "peer", "nothing lossy was promoted"
                runs = [bytes(run) for run in reader.layers(0, 8)]
                assert runs == [bytes(run) for run in kv_block(number).layers]


def test_the_node_counts_what_it_sent(tmp_path: Path) -> None:
    with open_store(tmp_path, disk_bytes=10**9) as node, node_server(node) as url:
        node.put(kv_block(0))
        asked = f"{url}/v1/store/blocks/{IDS[0].key}/layers?start=2&stop=4&codec=int8"
        answer = httpx.get(asked, timeout=60)
        assert answer.status_code == 200
        assert dict(node.stat().delivered) == {"int8": len(answer.content)}
        told = httpx.get(f"{url}/v1/store/stat", timeout=60).json()
        assert told["delivered_bytes"] == {"int8": len(answer.content)}
        for wrong in ("codec=zip", "codec=int8&start=7&stop=9", "codec=int8&start=4&stop=4"):
            path = f"{url}/v1/store/blocks/{IDS[0].key}/layers?start=0&stop=1&{wrong}"
            path = path.replace("start=0&stop=1&codec=int8&", "codec=int8&")
            assert httpx.get(path, timeout=60).is_error


def test_layers_that_come_damaged_are_counted_and_read_as_they_are_stored(tmp_path: Path) -> None:
    """A prompt of which a node's every answer failed was computed whole, and nothing told."""

    class Damaging(PeerRemote):
        def transcode(self, *_: Any) -> bytes | None:
            return b"x"

    with open_store(tmp_path, disk_bytes=10**9) as node, node_server(node) as url:
        node.put(kv_block(0))
        settings = RemoteSettings(RemoteCallSettings(timeout_s=60), read_bytes=1, poll_s=0)
        peer = RemoteTier(Damaging(url, timeout_s=20), settings, ManualClock(), NoTrace())
        with Store([MemoryTier(10**9, NoTrace())], far=[peer]) as store:
            store.index.refresh()
            store.links.note("peer", 1, 1.0)
            delivery = Delivery(within_s=1e-6, num_tokens=256, links=store.links, allowed=LOSSES)
            reader = store.open(IDS[0], delivery)
            assert reader is not None
            with reader:
                assert [bytes(run) for run in reader.layers(0, 2)] == [
                    bytes(run) for run in kv_block(0).layers[:2]
                ]
            stat = store.stat()
            assert (stat.lost, stat.corrupt, stat.errors) == (1, 0, {"peer": 1})
            assert dict(delivery.sizes).keys() == {AS_STORED}


def test_a_neighbour_cannot_tell_the_block_from_none(tmp_path: Path) -> None:
    with (
        open_store(tmp_path, disk_bytes=10**9) as node,
        node_server(node, admin_key="A", tenant_keys=("bob=B",)) as url,
    ):
        node.put(kv_block(0))
        bob, query = {"authorization": "Bearer B"}, "layers?start=0&stop=1&codec=int8"
        blocks = f"{url}/v1/store/blocks"
        there = httpx.get(f"{blocks}/{IDS[0].key}/{query}", headers=bob, timeout=60)
        absent = httpx.get(f"{blocks}/{'0' * 64}/{query}", headers=bob, timeout=60)
        assert (there.status_code, there.content) == (absent.status_code, absent.content)
        assert there.status_code == 404


def test_a_flipped_bit_of_an_answer_is_seen() -> None:
    encoded = encode_block(kv_block(0))
    handle: Handle = BytesHandle(encoded.data)
    sent = encode_layers(encoded.key, handle, 1, 3, "int8")
    whole = decode_layers(encoded.header, sent, 1, 3, "int8")
    assert [len(run) for run in whole] == [1 << 17] * 2
    rng = Random(7)
    for _ in range(300):
        torn = bytearray(sent)
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptBlock):
            decode_layers(encoded.header, bytes(torn), 1, 3, "int8")
    with pytest.raises(CorruptBlock):
        decode_layers(encoded.header, sent, 2, 4, "int8")


@pytest.mark.parametrize("max_kl", [None, 0.1])
def test_a_request_over_a_slow_link_says_what_it_got(
    max_kl: float | None, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Exact without leave to lose; with it as little as the deadline needs, and accounted as lossy."""
    document = "The lamp is lit at dusk. " * 40
    folder = tiny_model(max_position_embeddings=2048)
    with kdn.open(folder, config=Config(home=tmp_path / "writer")) as writer:
        writer.prefill(document)
        exact = writer.generate("Lit?", [document]).text
        fingerprint = writer.model.decoder.fingerprint_with(None)
        writer.store.flush()
    home = tmp_path / "reader"
    quality = CodecQuality(kl=0.01, kl_p99=0.1, changed_share=0.0, gain=3.5)
    measured = QualityRecord(
        model="tiny",
        fingerprint=fingerprint,
        positions=384,
        context_tokens=512,
        wall_s=0.0,
        kl_wrong_document=1.0,
        kl_no_context=2.0,
        codecs={"int4": quality},
    )
    save_record(home, measured)
    with ExitStack() as stack:
        node = stack.enter_context(open_store(tmp_path / "writer" / "store"))
        url = stack.enter_context(node_server(node))
        settings = StoreConfig(
            peer_url=url, load_within_s=1e-6, max_kl=max_kl, far_read_bytes=1, far_timeout_s=20
        )
        reader = stack.enter_context(kdn.open(folder, config=Config(home=home, store=settings)))
        reader.store.links.note("peer", 1, 1.0)
        answer = reader.generate("Lit?", [document])
        usage = answer.usage
        assert usage.cached_tokens > 256
        assert sum(usage.levels.values()) > 0
        if max_kl is None:
            assert usage.lossy == 0
            assert answer.text == exact
            assert set(usage.levels) <= {AS_STORED, "lossless"}
        else:
            assert usage.exact == 0
            assert usage.levels["int4"] > 0
            assert reader.store.stat().delivered["int4"] == usage.levels["int4"]
            before = reader.generate("When?", [document]).usage
            reader.store.flush()  # the question is stored by int4 now, behind the node's exact blocks
            after = reader.generate("When?", [document]).usage
            assert after.cached_tokens > before.cached_tokens
            assert (after.exact, after.levels["int4"] > 0) == (0, True)
        msgspec.json.encode(dict(usage.levels))


@settings(max_examples=200)
@given(st.data())
def test_what_a_node_sends_is_the_layers_or_a_corrupt_block(data: st.DataObject) -> None:
    encoded = encode_block(kv_block(0))
    sent = encode_layers(encoded.key, BytesHandle(encoded.data), 0, 2, "int8")
    wanted = [bytes(run) for run in decode_layers(encoded.header, sent, 0, 2, "int8")]
    changed = bytearray(sent)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 200) | st.integers(0, len(sent) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(sent), 0, 5, 100]))
    with suppress(CorruptBlock):
        runs = decode_layers(encoded.header, bytes(changed[:cut]), 0, 2, "int8")
        assert [bytes(run) for run in runs] == wanted
