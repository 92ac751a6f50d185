"""Remotes whose answers are anything: endless, slow, of wrong length or absurd size, foreign or garbled.

Each costs a counted miss or the tier; none costs an answer, a wait beyond the time-out, or memory.
"""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.clock import ManualClock
from kdn.core import EXACT, BlockKey
from kdn.errors import CorruptBlock, LostBlock, Unreachable
from kdn.store import (
    KeyRing,
    ObjectRemote,
    PeerRemote,
    RedisRemote,
    Remote,
    RemoteCallSettings,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
    pack_note,
    read_note,
)
from kdn.store.index.index import Entry
from kdn.store.tiers.memory import MemoryTier
from kdn.store.tiers.remote.client import (
    MAX_LISTED,
    MAX_LISTING_BYTES,
    Listed,
    RemoteChanges,
    first_rows,
)
from kdn.trace import NoTrace, Recorder
from tests.answering import Answer, answering
from tests.store.helpers import MODEL, block_id, make_block, run_of
from tests.store.remotes import redis_server
from tests.store.twins import DictRemote

PROMPT = tuple(range(256))
FIRST = block_id(PROMPT)
ENCODED = encode_block(make_block(FIRST))
NOTE = pack_note(Entry.of(FIRST))


def engine(remote: Remote, trace: Recorder | None = None, ring: KeyRing | None = None) -> Store:
    calls = RemoteCallSettings(timeout_s=5.0, attempts=1)
    trace = trace or Recorder()
    far = RemoteTier(remote, RemoteSettings(calls, poll_s=0), ManualClock(), trace, ring=ring)
    return Store([MemoryTier(10**9, NoTrace())], far=[far], trace=trace)


def found(store: Store) -> int:
    return store.match(MODEL, EXACT, "", PROMPT).num_tokens


# --- Redis, where any program may write under our names ---

FOREIGN: dict[str, Callable[[Any], object]] = {
    "a stream entry of other fields": lambda r: r.xadd("kdn:changes", {"foo": "bar"}),
    "a key that is no UTF-8": lambda r: r.xadd("kdn:changes", {"op": "came", "key": b"\xff\xfe"}),
    "a key that is a path": lambda r: r.xadd("kdn:changes", {"op": "came", "key": "../../x"}),
    "an operation that is none": lambda r: r.xadd("kdn:changes", {"op": b"\x00", "key": FIRST.key}),
    "a note's key that is no UTF-8": lambda r: (
        r.delete("kdn:changes"),
        r.hset("kdn:notes", b"\xff", "x"),
    ),
    "an empty note": lambda r: r.hset("kdn:notes", "0" * 64, b""),
    "a note of noise": lambda r: r.hset("kdn:notes", "0" * 64, bytes(range(256)) * 4),
    "a note of absurd size": lambda r: r.hset("kdn:notes", "0" * 64, b"\xff" * 8 + NOTE),
    "a huge note": lambda r: r.hset("kdn:notes", "0" * 64, b"\0" * (1 << 20)),
    "notes that are a list": lambda r: (r.delete("kdn:notes"), r.lpush("kdn:notes", "x")),
    "changes that are a text": lambda r: r.set("kdn:changes", "x"),
    "a block that is a list": lambda r: (
        r.delete(f"kdn:block:{FIRST.key}"),
        r.lpush(f"kdn:block:{FIRST.key}", "x"),
    ),
    "a block of noise": lambda r: r.set(f"kdn:block:{FIRST.key}", b"\x07" * 20_000),
    "an empty block": lambda r: r.set(f"kdn:block:{FIRST.key}", b""),
    "a block that is cut": lambda r: r.set(f"kdn:block:{FIRST.key}", bytes(ENCODED.data[:5000])),
}


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("redis")
    with redis_server(tmp_path_factory.mktemp("redis")) as (url, _):
        yield url


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_others_write_into_redis_costs_the_tier_at_most(
    redis_url: str, what: str, when: str
) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    client.flushall()
    with engine(RedisRemote(redis_url)) as writer:
        writer.put(make_block(FIRST))
        assert writer.flush(60)
    if when == "before":
        FOREIGN[what](client)
    with engine(RedisRemote(redis_url)) as store:
        assert found(store) in (0, 256)
        FOREIGN[what](client)
        for _ in range(3):
            for hit in store.match(MODEL, EXACT, "", PROMPT).hits:
                reader = store.open(hit)
                if reader is not None:
                    with reader, suppress(CorruptBlock, LostBlock):
                        assert bytes(reader.layer(0)) == run_of(FIRST, 0)
        store.put(make_block(FIRST))
        assert found(store) == 256, "memory has it"
        store.flush(60)
        store.check()
    client.close()


def test_a_foreign_entry_does_not_hide_ours(redis_url: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    client.flushall()
    client.xadd("kdn:changes", {"op": "went", "key": "0" * 64})
    trace = Recorder()
    with engine(RedisRemote(redis_url)) as writer, engine(RedisRemote(redis_url), trace) as store:
        assert found(store) == 0
        client.xadd("kdn:changes", {"foo": "bar"})
        writer.put(make_block(FIRST))
        assert writer.flush(60)
        client.xadd("kdn:changes", {"op": "came", "key": b"\xff"})
        assert found(store) == 256
        assert [event.fields["count"] for event in trace.events("store.foreign")] == [2]
        assert store.stat().failed == 0
    client.close()


# --- a node that answers with any bytes ---

HEAD = b"HTTP/1.1 206 Partial Content\r\n"


def told(added: list[Any] | None = None, **others: Any) -> bytes:
    fields = {"cursor": "c.1", "whole": True, "added": added or [], "removed": []} | others
    body = msgspec.msgpack.encode(list(fields.values()))
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


CHANGES = told([(FIRST.key, NOTE)])


@contextmanager
def node(answer: Answer) -> Iterator[str]:
    """A node that lists one block, and then answers so."""

    def say(line: str, connection: socket.socket) -> None:
        if "since" in line:
            connection.sendall(CHANGES)
        else:
            answer(line, connection)

    with answering(say) as place:
        yield f"http://{place}"


def _endless(_: str, connection: socket.socket) -> None:
    connection.sendall(HEAD + b"content-range: bytes 0-9/20000\r\n\r\n")
    while True:
        connection.sendall(b"\0" * 65536)


def _dripping(_: str, connection: socket.socket) -> None:
    connection.sendall(HEAD + b"content-length: 16384\r\ncontent-range: bytes 0-9/20000\r\n\r\n")
    while True:
        connection.sendall(b"\0")
        time.sleep(0.02)


def _endless_head(_: str, connection: socket.socket) -> None:
    connection.sendall(HEAD)
    while True:
        connection.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")


def _fixed(head: bytes, body: bytes = b"") -> Answer:
    length = b"content-length: %d\r\n\r\n" % len(body)
    return lambda _, connection: connection.sendall(head + length + body)


FRONT = bytes(ENCODED.data[: 16 << 10])
HOSTILE: dict[str, Answer] = {
    "endless": _endless,
    "dripping": _dripping,
    "an endless head": _endless_head,
    "no size": _fixed(HEAD, FRONT),
    "a size of no digits": _fixed(HEAD + b"content-range: bytes 0-9/many\r\n", FRONT),
    "a size of 4,000 digits": _fixed(
        HEAD + b"content-range: bytes 0-9/" + b"9" * 4000 + b"\r\n", FRONT
    ),
    "an absurd size": _fixed(HEAD + b"content-range: bytes 0-9/99999999999999\r\n", FRONT),
    "four gigabytes": _fixed(HEAD + b"content-range: bytes 0-9/4294967296\r\n", FRONT),
    "a size of none": _fixed(HEAD + b"content-range: bytes 0-9/0\r\n", FRONT),
    "less than asked": _fixed(HEAD + b"content-range: bytes 0-9/50000\r\n", FRONT[:100]),
    "more than the size": _fixed(HEAD + b"content-range: bytes 0-9/100\r\n", FRONT),
    "noise": _fixed(HEAD + b"content-range: bytes 0-9/16384\r\n", b"\x07" * 16384),
    "another status": _fixed(b"HTTP/1.1 500 No\r\n", b"x" * 100_000),
    "no HTTP": lambda _, connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "nothing": lambda _, connection: connection.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_node_that_answers_anything_costs_a_miss(how: str) -> None:
    with node(HOSTILE[how]) as url, engine(PeerRemote(url, timeout_s=1.5)) as store:
        assert found(store) == 256
        tracemalloc.start()
        began_s = time.monotonic()
        reader = store.open(FIRST)
        if reader is not None:
            with reader, pytest.raises((CorruptBlock, LostBlock)):
                reader.layers(0, 3)
        assert time.monotonic() - began_s < 60, "the drops alone would take five minutes"
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.stop()
        stat = store.stat()
        assert stat.failed + stat.corrupt + stat.lost >= 1
        store.put(make_block(FIRST))
        assert found(store) == 256


def _changes(answer: bytes) -> RemoteChanges:
    """What a peer takes from a node that answers so, and then no more."""

    def say(_: str, connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)

    with answering(say) as place:
        peer = PeerRemote(f"http://{place}", timeout_s=5)
        try:
            return peer.changes()
        finally:
            peer.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (told(cursor="x" * 10_000), "a cursor that is too long"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n\x94\xa1c\xc2\x90", "another kind"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n\xdd\xff\xff\xff\xff\x90",
            "another kind",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n", "99999 more expected"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 268435457\r\n\r\n",
            "it answers with more than 268435456 bytes",
        ),
    ],
)
def test_changes_that_cannot_be_read_cost_the_tier(answer: bytes, why: str) -> None:
    with pytest.raises(Unreachable, match=why):
        _changes(answer)


@pytest.mark.parametrize(
    ("answer", "foreign", "keys"),
    [
        (told([("../../etc/passwd", NOTE)]), 1, []),
        (told([(FIRST.key, b"\xff" * 70_000), (FIRST.key, b"")]), 0, [FIRST.key] * 2),
        (told([("0" * 64, NOTE)]), 0, ["0" * 64]),
        (told(removed=["\0", "x" * 100]), 2, []),
    ],
)
def test_foreign_changes_of_a_node_are_counted_and_their_notes_are_none(
    answer: bytes, foreign: int, keys: list[str]
) -> None:
    changes = _changes(answer)
    assert changes.foreign == foreign
    assert [one.key for one in changes.added] == keys
    assert all(read_note(one.key, one.note) is None for one in changes.added)


def test_a_listing_of_more_blocks_than_are_followed_is_not_made_into_objects() -> None:
    """Half a megabyte of empty entries would be 20 MB of tuples."""
    many = MAX_LISTED + 1
    body = b"\x94\xa1c\xc3\xdd" + many.to_bytes(4, "big") + b"\x92\xa0\xc4\x00" * many + b"\x90"
    with answering(_fixed(b"HTTP/1.1 200 OK\r\n", body)) as place:
        peer = PeerRemote(f"http://{place}", timeout_s=20)
        tracemalloc.start()
        with pytest.raises(Unreachable, match="of length <= 131072"):
            peer.changes()
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
        tracemalloc.stop()
        peer.close()


def test_a_listing_ends_where_a_reader_would_refuse_it_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """131,072 rows of 2 KiB are 256 MiB."""
    assert MAX_LISTING_BYTES == 256 << 20
    assert len(list(first_rows([("a", b"")] * MAX_LISTED))) == MAX_LISTED
    assert not caplog.messages
    assert len(list(first_rows([("a", b"")] * (MAX_LISTED + 1)))) == MAX_LISTED
    notes = [("a", bytes(1 << 20))] * 300
    assert len(list(first_rows(notes))) == 255, "each has 96 bytes beside its note"
    assert [line.split(";")[0] for line in caplog.messages] == [
        "a listing ends after 131072 blocks",
        "a listing ends after 255 blocks",
    ]


def test_notes_that_one_listing_has_no_room_for_come_with_the_next(tmp_path: Path) -> None:
    """Of 600 notes of 1 KiB two readings of 256 pass 300,000 bytes; 88 are left."""
    pytest.importorskip("obstore")
    remote = ObjectRemote(f"file://{tmp_path}/objects", listing_bytes=300_000)
    keys = [BlockKey(f"{number:064x}") for number in range(600)]
    for key in keys:
        remote.write(key, bytes(1024), memoryview(b"block"))
    first, second, third = (remote.changes() for _ in range(3))
    assert [len(one.added) for one in (first, second, third)] == [512, 88, 0]
    assert {one.key for one in (*first.added, *second.added)} == set(keys)
    assert [len(one.removed) for one in (first, second, third)] == [0, 0, 0]
    remote.close()


class NoteGone(ObjectRemote):
    """Another process drops the block at `gone` between the listing and the reading of its note."""

    gone: Path | None = None

    def _names(self) -> Iterator[str]:
        names = list(super()._names())
        if self.gone is not None:
            self.gone.unlink()
        yield from names


def test_a_block_that_went_and_came_again_between_two_listings_is_told(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    url, key = f"file://{tmp_path}/objects", BlockKey("a" * 64)
    remote, other = NoteGone(url), ObjectRemote(url)
    other.write(key, b"note", memoryview(b"block"))
    remote.gone = tmp_path / "objects" / "notes" / "aa" / key
    assert remote.changes() == RemoteChanges(whole=True)
    remote.gone = None
    other.write(key, b"note", memoryview(b"block"))
    told = RemoteChanges((Listed(key, b"note", 5),))
    assert remote.changes() == told
    other.remove(key)
    assert remote.head(key, 1) is None
    other.write(key, b"note", memoryview(b"block"))
    assert remote.changes() == told
    assert remote.changes() == RemoteChanges()
    other.remove(key)
    assert remote.changes() == RemoteChanges(removed=(key,))


# --- other servers that answer without an end ---


class Endless:
    """Zeros until the other side has had enough; `sent` of them were taken."""

    def __init__(self, head: bytes) -> None:
        self.head, self.sent = head, 0
        self.ended = threading.Event()

    def __call__(self, _: str, connection: socket.socket) -> None:
        try:
            connection.sendall(self.head)
            while self.sent < 256 << 20:
                self.sent += connection.send(b"\0" * 65536)
        finally:
            self.ended.set()


def test_a_redis_that_sends_more_than_asked_is_left() -> None:
    pytest.importorskip("redis")
    answer = Endless(b"$99999999999\r\n")
    with answering(answer, b"\r\n") as place:
        remote = RedisRemote(f"redis://{place}", timeout_s=20)
        with pytest.raises(Unreachable, match="more than was asked for"):
            remote.read(FIRST.key, 0, 16 << 10)
        remote.close()
        assert answer.ended.wait(20)
    assert answer.sent < 32 << 20, "what stands in the sockets' buffers"


def test_a_redis_that_drips_is_left() -> None:
    """A byte a second, where the whole answer has two."""
    pytest.importorskip("redis")
    clock = ManualClock()

    def say(_: str, connection: socket.socket) -> None:
        connection.sendall(b"$50\r\n")
        for _piece in range(50):
            connection.sendall(b"x")
            clock.advance(1)
        connection.sendall(b"\r\n")

    with answering(say, b"\r\n") as place:
        remote = RedisRemote(f"redis://{place}", timeout_s=2, clock=clock)
        with pytest.raises(Unreachable, match="did not end in time"):
            remote.read(FIRST.key, 0, 50)
        remote.close()


def test_an_object_store_that_sends_more_than_asked_is_left() -> None:
    pytest.importorskip("obstore")
    answer = Endless(
        HEAD + b"content-range: bytes 0-16383/50000\r\ncontent-length: 9999999999\r\n"
        b"etag: x\r\nlast-modified: Mon, 05 Jan 2026 10:00:00 GMT\r\n\r\n"
    )
    with answering(answer) as place:
        options = {"endpoint": f"http://{place}", "region": "x", "skip_signature": "true"}
        remote = ObjectRemote("s3://kv/blocks", options=options, timeout_s=20)
        assert len(remote.read(FIRST.key, 0, 16 << 10)) != 16 << 10, "the tier counts it as lost"
        assert answer.ended.wait(20)
    assert answer.sent < 32 << 20


# --- a remote of ours with other bytes ---


class Odd(DictRemote):
    """Gives what it is told to."""

    def __init__(self, head: tuple[bytes, int] | Exception) -> None:
        super().__init__()
        self.first = head

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        if isinstance(self.first, Exception):
            raise self.first
        return self.first

    def changes(self) -> RemoteChanges:
        return RemoteChanges((Listed(FIRST.key, NOTE, ENCODED.size_bytes),), whole=True)


@pytest.mark.parametrize(
    "head",
    [
        (b"", 0),
        (b"", -1),
        (FRONT, 100),
        (FRONT + FRONT, 60_000),
        (FRONT, 1 << 40),
        (FRONT[:10], 60_000),
        (b"\x89KDNSEAL" + bytes(16376), 60_000),
        ValueError("a library's own error"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
        MemoryError(),
        RecursionError(),
    ],
)
def test_any_head_is_a_counted_miss(head: tuple[bytes, int] | Exception) -> None:
    for ring in (None, KeyRing(bytes(range(32)))):
        with engine(Odd(head), ring=ring) as store:
            store.index.refresh()
            assert store.open(FIRST) is None
            assert store.stat().misses == 1


def test_a_library_that_raises_while_listing_costs_the_tier() -> None:
    class Raising(DictRemote):
        def changes(self) -> RemoteChanges:
            raise KeyError("no such field")

    with engine(Raising()) as store:
        store.put(make_block(FIRST))
        assert found(store) == 256
        assert store.stat().failed > 0


def test_a_plain_block_among_sealed_ones_is_lost_and_sealed_again() -> None:
    """A process without the key overwrites ours in Redis: we do not read it, and may put ours again."""
    remote, ring = DictRemote(), KeyRing(bytes(range(32)))
    with engine(remote, ring=ring) as store:
        store.put(make_block(FIRST))
        assert store.flush(60)
        with engine(remote) as stranger:
            assert found(stranger) == 0
            stranger.put(make_block(FIRST))
            assert stranger.flush(60)
        store.tiers.fastest.drop(FIRST.key)
        assert store.open(FIRST) is None
        assert store.stat().lost == 1
        store.put(make_block(FIRST))
        assert store.flush(60)
        assert remote.read(FIRST.key, 0, 8) == b"\x89KDNSEAL"


# --- notes ---


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_noise_is_no_note(noise: bytes) -> None:
    assert read_note(FIRST.key, noise) is None


@settings(max_examples=300)
@given(st.integers(0, len(NOTE) - 1), st.binary(min_size=1, max_size=4))
def test_a_changed_note_is_the_same_or_none(at: int, new: bytes) -> None:
    """But for where it starts, which the key does not name: such a block is not found there."""
    changed = read_note(FIRST.key, NOTE[:at] + new + NOTE[at + len(new) :])
    assert changed is None or changed._replace(start=0) == Entry.of(FIRST)


@pytest.mark.parametrize(
    "values",
    [
        ["m", [], "", "", "x", -5, b"\0" * 4],
        ["m", [], "", "", "x", 1 << 62, b"\0" * 4],
        ["m", [], "", "", "x", 0, b""],
        ["m", [], "", "", "x", 0, b"\0" * 4096],
        ["m", ["witchcraft"], "", "", "x", 0, b"\0" * 4],
        ["m" * 5000, [], "", "", "x", 0, b"\0" * 4],
    ],
)
def test_a_note_of_impossible_values_is_none(values: list[object]) -> None:
    assert read_note(FIRST.key, msgspec.msgpack.encode(values)) is None
