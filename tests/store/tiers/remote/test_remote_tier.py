"""Tiers across a network: the same stories over a dict, Redis, object stores and a peer node."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from kdn.clock import ManualClock, SystemClock
from kdn.core import EXACT, BlockKey, KvShape
from kdn.errors import BadConfig, LostBlock, NoSpace, Unreachable
from kdn.store import (
    Block,
    MemoryTier,
    ObjectRemote,
    PeerRemote,
    Quotas,
    RedisRemote,
    Remote,
    RemoteCallSettings,
    RemoteChanges,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
    layers_together,
    open_store,
    pack_note,
)
from kdn.store.index.index import Entry
from kdn.trace import NoTrace, Recorder
from tests.store.helpers import MODEL, block_id, make_block, run_of
from tests.store.remotes import node_server, redis_server, s3_server
from tests.store.twins import DictRemote, Meeting

PROMPT = tuple(range(300))
FIRST = block_id(PROMPT[:256])
SECOND = block_id(PROMPT[256:], PROMPT[:256])
EAGER = RemoteSettings(RemoteCallSettings(timeout_s=20), poll_s=0)
Maker = Callable[[], Remote]


def over_dict(folder: Path, stack: ExitStack) -> Maker:
    shared = DictRemote()
    return lambda: shared


def over_redis(folder: Path, stack: ExitStack) -> Maker:
    url, _ = stack.enter_context(redis_server(folder))
    return lambda: RedisRemote(url)


def over_folder(folder: Path, stack: ExitStack) -> Maker:
    return lambda: ObjectRemote(f"file://{folder}/objects")


def over_s3(folder: Path, stack: ExitStack) -> Maker:
    options = stack.enter_context(s3_server(folder))
    return lambda: ObjectRemote("s3://kv-test/blocks-of-ours", options=options, timeout_s=20)


def over_node(folder: Path, stack: ExitStack) -> Maker:
    store = stack.enter_context(open_store(folder / "node", disk_bytes=10**9))
    url = stack.enter_context(node_server(store))
    return lambda: PeerRemote(url, timeout_s=20)


@pytest.fixture(params=[over_dict, over_redis, over_folder, over_s3, over_node])
def make_remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    with ExitStack() as stack:
        yield request.param(tmp_path, stack)


def engine_with(remote: Remote, settings: RemoteSettings = EAGER) -> Store:
    """A store that has nothing of its own but memory."""
    clock = SystemClock()
    tier = RemoteTier(remote, settings, clock, NoTrace(), Random(1))
    return Store([MemoryTier(10**9, NoTrace())], far=[tier], clock=clock)


def test_one_engine_reads_what_another_wrote(make_remote: Maker) -> None:
    with engine_with(make_remote()) as writer:
        writer.put(make_block(FIRST))
        writer.write_behind(make_block(SECOND))
        assert writer.flush(60)
        assert writer.stat().failed == 0
        with engine_with(make_remote()) as reader:
            match = reader.match(MODEL, EXACT, "", PROMPT)
            far = reader.tiers.far[-1].name
            assert [(hit.num_tokens, hit.tier) for hit in match.hits] == [(256, far), (44, far)]
            for hit in match.hits:
                found = reader.open(hit)
                assert found is not None
                with found:
                    assert [bytes(run) for run in found.layers(0, 3)] == [
                        run_of(hit.id, layer) for layer in range(3)
                    ]
            match = reader.match(MODEL, EXACT, "", PROMPT)
            assert [hit.tier for hit in match.hits] == ["memory", "memory"]
            assert reader.stat().bytes_per_s[far] > 0
            reader.check()


def test_what_is_dropped_is_gone_for_everybody(make_remote: Maker) -> None:
    with engine_with(make_remote()) as one, engine_with(make_remote()) as other:
        one.put(make_block(FIRST))
        one.put(make_block(SECOND))
        assert one.flush(60)
        assert other.match(MODEL, EXACT, "", PROMPT).num_tokens == 300
        assert one.drop(SECOND.key)
        assert other.match(MODEL, EXACT, "", PROMPT).num_tokens == 256
        assert other.open(SECOND) is None
        assert not one.drop(SECOND.key)


def test_layers_are_read_alone_and_ranges_give_what_is_there(make_remote: Maker) -> None:
    remote = make_remote()
    block = encode_block(make_block(FIRST))
    with engine_with(remote) as store:
        store.put(make_block(FIRST))
        assert store.flush(60)
        head = remote.head(FIRST.key, 100)
        assert head == (bytes(block.data[:100]), block.size_bytes)
        assert remote.read(FIRST.key, 4096, 5000) == bytes(block.data[4096:5000])
        assert remote.head(SECOND.key, 100) is None
        assert remote.read(SECOND.key, 0, 10) == b""
        assert not remote.remove(SECOND.key)


def test_a_damaged_block_is_a_miss_that_is_counted(tmp_path: Path) -> None:
    remote = DictRemote()
    block = encode_block(make_block(FIRST))
    with engine_with(remote) as store:
        store.put(make_block(FIRST))
        assert store.flush(60)
    note = remote.changes().added[0].note
    data = bytearray(block.data)
    data[-1] ^= 1
    remote.write(FIRST.key, note, memoryview(data))
    with engine_with(remote) as store:
        (hit,) = store.match(MODEL, EXACT, "", PROMPT).hits
        reader = store.open(hit)
        assert reader is not None
        with reader, pytest.raises(Exception, match="checksum"):
            reader.layers(0, 3)
        assert store.stat().corrupt == 1
        assert store.match(MODEL, EXACT, "", PROMPT).num_tokens == 0
    assert remote.head(FIRST.key, 10) is None


def test_a_note_that_lies_about_its_block_is_passed_over() -> None:
    remote = DictRemote()
    with engine_with(remote) as store:
        store.put(make_block(FIRST))
        assert store.flush(60)
    note = remote.changes().added[0].note
    remote.write(SECOND.key, note, memoryview(b"x"))
    remote.write(BlockKey("0" * 64), b"no note at all", memoryview(b"x"))
    with engine_with(remote) as store:
        assert [entry.key for entry in store.index.entries()] == [FIRST.key]


def test_the_cap_of_a_far_tier_holds_and_the_oldest_goes() -> None:
    remote, trace = DictRemote(), Recorder()
    size = encode_block(make_block(FIRST)).size_bytes
    settings = RemoteSettings(RemoteCallSettings(), capacity_bytes=2 * size, poll_s=0)
    tier = RemoteTier(remote, settings, SystemClock(), trace)
    blocks = [make_block(block_id(range(n, n + 256))) for n in (0, 1000, 2000)]
    for block in blocks:
        tier.put(encode_block(block), lambda _: False)
        tier.changes()
    assert list(tier.block_keys()) == [blocks[1].id.key, blocks[2].id.key]
    assert (tier.usage().size_bytes, tier.usage().evicted) == (2 * size, 1)
    tier.touch(blocks[1].id.key)
    with pytest.raises(NoSpace):
        tier.put(encode_block(blocks[0]), lambda _: True)
    tier.check()
    tier.close()


def test_a_block_that_the_remote_lost_is_put_again() -> None:
    remote, block = DictRemote(), encode_block(make_block(FIRST))
    tier = RemoteTier(remote, RemoteSettings(poll_s=10), ManualClock(), NoTrace())
    for _ in range(2):
        tier.put(block, lambda _: False)
        assert remote.head(FIRST.key, 10) == (bytes(block.data[:10]), block.size_bytes)
        remote.remove(FIRST.key)
    tier.close()


class _Unsized(DictRemote):
    """Lists blocks without their sizes, as a node does."""

    def changes(self) -> RemoteChanges:
        added = tuple(one._replace(size_bytes=0) for one in super().changes().added)
        return RemoteChanges(added, whole=True)


@pytest.mark.parametrize(("cap", "quota"), [(2, None), (None, 2)])
def test_blocks_of_others_stay_where_the_remote_tells_no_sizes(
    cap: int | None, quota: int | None
) -> None:
    """Room for two, three of others and three of ours: the first of ours goes."""
    remote = _Unsized()
    names = [block_id(range(n, n + 256)) for n in range(0, 6000, 1000)]
    for name in names[:3]:
        remote.write(name.key, pack_note(Entry.of(name)), encode_block(make_block(name)).data)
    size = encode_block(make_block(FIRST)).size_bytes
    settings = RemoteSettings(capacity_bytes=cap and cap * size, poll_s=0)
    tier = RemoteTier(remote, settings, SystemClock(), NoTrace())
    quotas = Quotas(quota and quota * size)
    with Store([MemoryTier(10**9, NoTrace())], far=[tier], quotas=quotas) as store:
        for name in names[3:]:
            store.put(make_block(name))
        assert store.flush(60)
        assert store.stat().failed == store.stat().dropped == 0
    left = {one.key for one in remote.changes().added}
    assert left == {name.key for name in (*names[:3], *names[4:])}


def test_redis_that_lost_a_value_is_a_miss_and_forgets_its_note(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (url, _), engine_with(RedisRemote(url)) as writer:
        writer.put(make_block(FIRST))
        assert writer.flush(60)
        import redis

        with redis.Redis.from_url(url) as client:
            with engine_with(RedisRemote(url)) as reader:
                assert reader.match(MODEL, EXACT, "", PROMPT).num_tokens == 256
                assert client.delete(f"kdn:block:{FIRST.key}") == 1
                assert reader.open(FIRST) is None
                assert reader.match(MODEL, EXACT, "", PROMPT).num_tokens == 0
            assert client.hlen("kdn:notes") == 0


def test_redis_that_is_full_is_read_and_blocks_can_be_dropped(tmp_path: Path) -> None:
    """Each refused write counted as a failure of Redis, and three of them closed it to readers."""
    from redis import Redis

    with redis_server(tmp_path) as (url, _), Redis.from_url(url) as client:
        with engine_with(RedisRemote(url, timeout_s=20)) as store:
            store.put(make_block(FIRST))
            assert store.flush(60)
            client.config_set("maxmemory", 1)
            for start in (1000, 2000, 3000):
                store.put(make_block(block_id(range(start, start + 256))))
            assert store.flush(60)
            stat = store.stat()
            assert (stat.dropped, stat.failed, stat.open_circuits) == (3, 0, ())
            with engine_with(RedisRemote(url, timeout_s=20)) as reader:
                assert reader.match(MODEL, EXACT, "", PROMPT).num_tokens == 256
            assert store.drop(FIRST.key)
            assert store.stat().failed == 0
        assert client.hlen("kdn:notes") == 0


def test_a_new_engine_finds_only_what_redis_has_not_evicted(tmp_path: Path) -> None:
    from redis import Redis

    names = [block_id(range(start, start + 256)) for start in (0, 1000, 2000)]
    with redis_server(tmp_path) as (url, _), Redis.from_url(url) as client:
        with engine_with(RedisRemote(url, timeout_s=20)) as writer:
            for name in names:
                writer.put(make_block(name))
            assert writer.flush(60)
        client.delete(*(f"kdn:block:{name.key}" for name in names[1:]))
        with engine_with(RedisRemote(url, timeout_s=20)) as reader:
            assert [entry.key for entry in reader.index.entries()] == [names[0].key]
        assert client.hkeys("kdn:notes") == [names[0].key.encode()]


def test_engines_that_follow_redis_hear_of_what_it_evicted(tmp_path: Path) -> None:
    """The block that comes next has them look at the notes; those of two that went are told to all."""
    from redis import Redis

    names = [block_id(range(start, start + 256)) for start in (0, 1000, 2000, 3000)]
    with redis_server(tmp_path) as (url, _), Redis.from_url(url) as client:
        with (
            engine_with(RedisRemote(url, timeout_s=20)) as writer,
            engine_with(RedisRemote(url, timeout_s=20)) as reader,
        ):
            for name in names[:3]:
                writer.put(make_block(name))
            assert writer.flush(60)
            assert len(reader.index.entries()) == 3
            client.delete(*(f"kdn:block:{name.key}" for name in names[1:3]))
            writer.put(make_block(names[3]))
            assert writer.flush(60)
            reader.index.refresh()
            assert {one.key for one in reader.index.entries()} == {names[0].key, names[3].key}
        assert client.hlen("kdn:notes") == 2


def test_a_note_stays_where_its_block_is_written_again_meanwhile(tmp_path: Path) -> None:
    from redis import Redis

    with redis_server(tmp_path) as (url, _), Redis.from_url(url) as client:
        remote = RedisRemote(url, timeout_s=20)
        remote.write(FIRST.key, b"note", memoryview(b"block"))
        remote._forget([FIRST.key])
        assert client.hlen("kdn:notes") == 1
        remote.close()


def test_redis_emptied_under_us_is_noticed(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (url, _), engine_with(RedisRemote(url)) as writer:
        writer.put(make_block(FIRST))
        assert writer.flush(60)
        with engine_with(RedisRemote(url)) as reader:
            assert reader.match(MODEL, EXACT, "", PROMPT).num_tokens == 256
            import redis

            with redis.Redis.from_url(url) as client:
                client.flushall()
            assert reader.match(MODEL, EXACT, "", PROMPT).num_tokens == 0


def test_prefixes_keep_two_users_of_one_redis_apart(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (url, _):
        with engine_with(RedisRemote(url, prefix="a")) as one:
            one.put(make_block(FIRST))
            assert one.flush(60)
        with engine_with(RedisRemote(url, prefix="b")) as other:
            assert other.match(MODEL, EXACT, "", PROMPT).num_tokens == 0


def test_a_server_killed_in_the_middle_of_a_load(tmp_path: Path) -> None:
    """The reader is told that the block is lost, soon; the block is not called damaged; from then
    on the tier its circuit is open and it costs nothing."""
    line = RemoteCallSettings(timeout_s=60, attempts=1)
    settings = RemoteSettings(line, read_bytes=1, poll_s=0)
    with redis_server(tmp_path) as (url, server):
        with engine_with(RedisRemote(url)) as writer:
            writer.put(make_block(FIRST))
            assert writer.flush(60)
        with engine_with(RedisRemote(url, timeout_s=60), settings) as store:
            reader = store.open(FIRST)
            assert reader is not None
            with reader:
                assert bytes(reader.layer(0)) == run_of(FIRST, 0)
                _kill(server)
                with pytest.raises(Exception, match="Redis failed"):
                    reader.layer(2)
            assert (store.stat().lost, store.stat().corrupt) == (1, 0)
            assert store.open(FIRST) is None
            store.open(FIRST)
            assert store.stat().open_circuits == ("redis",)
            assert store.match(MODEL, EXACT, "", PROMPT).num_tokens == 0, "as good as not there"


def test_a_load_broken_off_is_finished_for_the_next_reader() -> None:
    remote = DictRemote()
    with engine_with(remote) as writer:
        writer.put(make_block(FIRST))
        assert writer.flush(60)
    with engine_with(remote, RemoteSettings(RemoteCallSettings(), read_bytes=1, poll_s=0)) as store:
        reader = store.open(FIRST)
        assert reader is not None
        reader.layer(0)
        reader.close()
        assert store.flush(60)
        (hit,) = store.match(MODEL, EXACT, "", PROMPT).hits
        assert hit.tier == "memory"


def test_what_came_from_afar_is_on_the_disk_after_a_restart(tmp_path: Path) -> None:
    remote = DictRemote()
    with engine_with(remote) as writer:
        writer.put(make_block(FIRST))
        assert writer.flush(60)
    from kdn.store import DiskTier

    clock, trace = SystemClock(), NoTrace()
    tiers = [MemoryTier(10**9, trace), DiskTier(tmp_path / "kv", 10**9, clock, trace)]
    with Store(tiers, far=[RemoteTier(remote, EAGER, clock, trace)]) as store:
        reader = store.open(FIRST)
        assert reader is not None
        with reader:
            reader.layers(0, 3)
        assert store.flush(60)
    with open_store(tmp_path / "kv") as store:
        (hit,) = store.match(MODEL, EXACT, "", PROMPT).hits
        assert hit.tier == "disk"


class _HeldListing(DictRemote):
    """Lists what is there, and answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self.num_listed = 0
        self.listed = threading.Event()

    def changes(self) -> RemoteChanges:
        found = super().changes()
        self.num_listed += 1
        self.listed.set()
        assert self.may_answer.wait(60)
        return found


def test_a_block_written_while_the_remote_is_listed_stays_known() -> None:
    """The second listing is of before the write and taken in after it; a third one begins only then."""
    clock, remote = ManualClock(), _HeldListing()
    tier = RemoteTier(remote, RemoteSettings(poll_s=1), clock, NoTrace(), Random(1))
    remote.may_answer.set()
    tier.changes()
    remote.may_answer.clear()
    remote.listed.clear()
    clock.advance(2)
    tier.changes()
    assert remote.listed.wait(60)
    tier.put(encode_block(make_block(FIRST)), lambda _: False)
    remote.may_answer.set()
    while remote.num_listed < 3:
        clock.advance(2)
        tier.changes()
        assert tier.holds(FIRST.key)
    tier.close()


class _ToldOnce(_HeldListing):
    """Tells of each block once, and gives none while it is down."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[BlockKey] = set()
        self.is_down = False

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        if self.is_down:
            raise Unreachable("it is down")
        return super().head(key, num_bytes)

    def changes(self) -> RemoteChanges:
        added = tuple(one for one in super().changes().added if one.key not in self._told)
        self._told.update(one.key for one in added)
        return RemoteChanges(added)


def test_a_listing_that_came_before_the_circuit_opened_is_taken_in() -> None:
    """The remote would not tell of that block again."""
    clock, remote = ManualClock(), _ToldOnce()
    tier = RemoteTier(remote, RemoteSettings(RemoteCallSettings(attempts=1)), clock, NoTrace())
    remote.may_answer.set()
    tier.changes()
    tier.put(encode_block(make_block(FIRST)), lambda _: False)
    remote.write(SECOND.key, pack_note(Entry.of(SECOND)), encode_block(make_block(SECOND)).data)
    remote.may_answer.clear()
    clock.advance(2)
    tier.changes()
    remote.is_down = True
    for _ in range(3):
        with pytest.raises(Unreachable, match="it is down"):
            tier.open(FIRST.key)
    remote.may_answer.set()
    while not tier.holds(SECOND.key):
        tier.changes()
    assert not tier.is_reachable(), "an old answer closes no circuit"
    tier.close()


def test_news_are_asked_for_when_they_are_old() -> None:
    clock, remote = ManualClock(), DictRemote()
    settings = RemoteSettings(RemoteCallSettings(timeout_s=20), poll_s=10)
    tier = RemoteTier(remote, settings, clock, NoTrace())
    assert tier.changes().added == ()
    with engine_with(remote) as writer:
        writer.put(make_block(FIRST))
        assert writer.flush(60)
    clock.advance(9)
    assert tier.changes().added == ()
    clock.advance(1)
    for _ in range(10_000):  # asked in the background: some look after finds it
        added = tier.changes().added
        if added:
            break
        clock.advance(0.0001)
        tier._caller._closed.wait(0.005)
    assert [entry.key for entry in added] == [FIRST.key]
    tier.close()


@pytest.mark.parametrize("url", ["redis://h:port", "ftp://h", "nowhere"])
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(BadConfig):
        PeerRemote(url)
    with pytest.raises(BadConfig):
        RedisRemote(url)
    with pytest.raises(BadConfig):
        ObjectRemote(url)


def test_a_setting_that_the_object_store_does_not_know_is_one_sentence() -> None:
    """obstore panics at it, and what Rust's panic raises is no Exception."""
    pytest.importorskip("obstore")
    with pytest.raises(BadConfig, match="cannot be used as an object store"):
        ObjectRemote("s3://bucket/kv", options={"allow_http": "true"})


def test_nobody_there_is_unreachable() -> None:
    for remote in (
        PeerRemote("http://127.0.0.1:9", timeout_s=1),
        RedisRemote("redis://127.0.0.1:9", timeout_s=1),
    ):
        with pytest.raises(Unreachable):
            remote.changes()
        remote.close()


def _kill(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()


class Asked(DictRemote):
    """Notes what is asked for, and gives a part of it where told so."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []
        self.is_short = False

    def read(self, key: BlockKey, start: int, stop: int) -> bytes:
        self.ranges.append((start, stop))
        data = super().read(key, start, stop)
        return data[:-1] if self.is_short else data


def test_much_is_asked_for_in_pieces_and_a_short_one_shows_no_speed() -> None:
    """Twenty layers of 128 KiB, 2.6 MB, by 1 MiB, each with a time-out of its own."""
    shape, remote, clock = KvShape(20, 2, 64, "bfloat16"), Asked(), ManualClock()
    tier = RemoteTier(remote, RemoteSettings(poll_s=0, read_bytes=1), clock, NoTrace())
    with Store([MemoryTier(10**9, NoTrace())], far=[tier], clock=clock) as store:
        block = encode_block(Block(FIRST, shape, (bytes(128 << 10),) * 20))
        store.tenancy.put_into(tier, block)
        with tier.link.reading(10**7):
            clock.advance(1.0)
        remote.is_short = True
        assert tier.link.at_once == 4
        handle = tier.open(FIRST.key)
        assert handle is not None
        size = handle.buffer.nbytes
        with pytest.raises(LostBlock):
            handle.read(0, size)
        assert (tier.link.at_once, tier.link.read_bytes) == (1, 1)
        remote.is_short, remote.ranges = False, []
        assert bytes(handle.read(0, size)) == bytes(block.data)
        starts = range(16 << 10, size, 1 << 20)
        assert remote.ranges == [(at, min(at + (1 << 20), size)) for at in starts]


def test_blocks_across_a_quick_network_are_read_side_by_side() -> None:
    """One after the other the first read would wait for the others for ever."""
    names = [block_id(range(first, first + 200)) for first in range(4)]
    clock = ManualClock()
    far = RemoteTier(Meeting(len(names)), EAGER, clock, NoTrace())
    with Store([MemoryTier(10**9, NoTrace())], far=[far]) as store, ExitStack() as held:
        for name in names:
            store.tenancy.put_into(far, encode_block(make_block(name)))
        with far.link.reading(10**9):
            clock.advance(1.0)
        readers = [held.enter_context(one) for name in names if (one := store.open(name))]
        runs = layers_together(readers, 0, 3)
        for name, found in zip(names, runs, strict=True):
            assert [bytes(run) for run in found] == [run_of(name, layer) for layer in range(3)]
        assert store.stat().bytes_per_s["dict"] > 0
