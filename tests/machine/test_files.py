"""One file published whole: what readers see, what a crash leaves, what a failing disk says."""

from __future__ import annotations

import errno
import os
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdn.errors import BadInput, NoSpace, StoreError
from kdn.machine.files import (
    Files,
    locked,
    publish_file,
    publish_first,
    publish_made,
    publishing,
    refuse_output,
)
from kdn.machine.memory import allocate
from tests.store.crashes import RecordingFiles, build, states

VERBS = ("write", "rename", "sync_folder", "make_folder")


@dataclass
class FailingFiles(Files):
    """Files of which one verb fails."""

    verb: str
    error: int = errno.EIO
    half: int = 0
    """So many bytes are written before `write` fails."""

    def __post_init__(self) -> None:
        super().__init__()

    def write(self, path: Path, data: memoryview, mode: int = 0o600) -> None:
        super().write(path, data[: self.half] if self.verb == "write" else data, mode)
        self._perhaps_fail("write")

    def rename(self, path: Path, to: Path) -> None:
        self._perhaps_fail("rename")
        super().rename(path, to)

    def sync_folder(self, path: Path) -> None:
        self._perhaps_fail("sync_folder")
        super().sync_folder(path)

    def make_folder(self, path: Path) -> None:
        self._perhaps_fail("make_folder")
        super().make_folder(path)

    def _perhaps_fail(self, verb: str) -> None:
        if verb == self.verb:
            raise OSError(self.error, "no luck")


def test_a_file_is_published_with_its_folders_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "facts.json"
    publish_file(path, b"one")
    publish_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["facts.json"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_mode_can_be_asked_for(tmp_path: Path) -> None:
    publish_file(tmp_path / "program", b"#!", mode=0o700)
    assert (tmp_path / "program").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("most", [500])
def test_every_crash_leaves_the_old_file_or_the_new_one(tmp_path: Path, most: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    files = RecordingFiles(root)
    path = root / "notes" / "facts.json"
    publish_file(path, b"old", files=files)
    done = len(files.steps)
    publish_file(path, b"new", files=files)
    seen = set()
    for number, state in enumerate(states(files, most)):
        left = tmp_path / str(number)
        left.mkdir()
        build(files, state, left)
        found = left / "notes" / "facts.json"
        what = found.read_bytes() if found.exists() else None
        seen.add(what)
        assert what in ({None, b"old"} if state.steps < done else {b"old", b"new"})
        if state.steps == len(files.steps):
            assert what == b"new", "it had returned"
    assert seen == {None, b"old", b"new"}


@pytest.mark.parametrize("verb", ["write", "rename"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "facts.json"
    publish_file(path, b"old")
    with pytest.raises(StoreError, match=r"writing .*facts\.json: no luck; check the folder"):
        publish_file(path, b"new", files=FailingFiles(verb, half=1))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("error", "kind"), [(errno.EIO, StoreError), (errno.ENOSPC, NoSpace)])
def test_every_failure_is_one_sentence(
    tmp_path: Path, verb: str, error: int, kind: type[StoreError]
) -> None:
    with pytest.raises(kind, match="no luck; ") as caught:
        publish_file(tmp_path / "folder" / "facts.json", b"new", files=FailingFiles(verb, error))
    assert type(caught.value) is kind


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StoreError, match=r"taken"):
        publish_file(tmp_path / "taken" / "facts.json", b"")


def test_what_took_long_to_make_is_kept_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    spare = tmp_path / "spare"
    with pytest.raises(StoreError, match=r"taken.*; what was made is kept as (.*)") as caught:
        publish_made(tmp_path / "taken" / "facts.json", b"hours", spare=spare)
    (kept,) = spare.iterdir()
    assert kept.read_bytes() == b"hours"
    assert str(caught.value).endswith(f"kept as {kept}")
    with pytest.raises(StoreError, match=r"taken.*; check the folder or choose another$"):
        publish_made(tmp_path / "taken" / "facts.json", b"hours", spare=tmp_path / "taken")


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    texts = [bytes([65 + number]) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=publish_file, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_that_publish_first_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "marker"
    publish_first(path, b"mine")
    publish_first(path, b"theirs")
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_the_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    """Sixteen threads count to sixteen by reading and writing a file under the lock."""
    count, lock = tmp_path / "count", tmp_path / "count.lock"
    count.write_text("0")

    def add() -> None:
        with locked(lock):
            publish_file(count, str(int(count.read_text()) + 1).encode())

    threads = [threading.Thread(target=add) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "16"


def test_what_is_written_in_pieces_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bundle"
    with publishing(path) as file:
        file.write(b"one ")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"one two"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ZeroDivisionError), publishing(path) as file:
        file.write(bytes([1 // (file.write(b"half") - 4)]))
    assert path.read_bytes() == b"one two"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "facts.json")
    publish_file(tmp_path / "link", b"one")
    assert (tmp_path / "facts.json").read_bytes() == b"one"
    with publishing(tmp_path / "link") as file:
        file.write(b"two")
    assert (tmp_path / "facts.json").read_bytes() == b"two"
    assert (tmp_path / "link").is_symlink()


def test_a_file_takes_no_folders_and_no_pipes_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "old").write_text("")
    refuse_output(tmp_path / "old")
    refuse_output(tmp_path / "new")
    for path, why in (
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / "pipe", "is a device, a pipe or a socket; name a file"),
        (Path("/dev/null"), "is a device, a pipe or a socket; name a file"),
        (tmp_path / "missing" / "new", "there is no folder"),
    ):
        with pytest.raises(BadInput, match=why):
            refuse_output(path)


@pytest.mark.parametrize("surplus", [0, 1, 4095])
@pytest.mark.parametrize("offset", [0, 8])
def test_large_data_is_written_whole_from_any_address(
    tmp_path: Path, surplus: int, offset: int
) -> None:
    size_bytes = (2 << 20) + surplus
    data = allocate(size_bytes + offset)[offset:]
    data[:] = random.Random(surplus).randbytes(size_bytes)
    Files().write(tmp_path / "block", data)
    assert (tmp_path / "block").read_bytes() == data


def test_large_data_leaves_no_copy_in_the_systems_cache(tmp_path: Path) -> None:
    large, small = allocate(2 << 20), memoryview(bytes(4096))
    Files().write(tmp_path / "large", large)
    Files().write(tmp_path / "small", small)
    try:
        assert _is_cached(tmp_path / "small")
        probe = os.open(tmp_path / "large", os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"this file system cannot tell what is cached: {error}")
    os.close(probe)
    assert not _is_cached(tmp_path / "large")


def _is_cached(path: Path) -> bool:
    """Can its first page be read without waiting for the device?"""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(4096)], 0, os.RWF_NOWAIT) == 4096
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
