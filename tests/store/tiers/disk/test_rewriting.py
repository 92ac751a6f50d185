"""A block is written again in another form: whatever interrupts that, one of the two is there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.errors import NoSpace, StoreError
from kdn.machine.files import Files
from kdn.store import CODECS, DiskTier, EncodedBlock, encode_block
from kdn.trace import NoTrace
from tests.store.helpers import block_id, make_block

NAMES = [block_id([number] * 64) for number in range(2)]
KEY, OTHER = (name.key for name in NAMES)
PLAIN, OTHERS = (encode_block(make_block(name)) for name in NAMES)
PACKED = encode_block(make_block(NAMES[0]), CODECS["lossless"])
"""Random bytes do not shrink: packed they take 192 bytes more."""
BROKEN = OSError(errno.EIO, "Input/output error")


def nobody(_: str) -> bool:
    return False


class FailsOnce(Files):
    """A device that raises `error` at the verb `verb`, once."""

    def __init__(self) -> None:
        super().__init__()
        self.verb = ""
        self.error: BaseException = BROKEN

    def write(self, path: Path, data: memoryview, mode: int = 0o600) -> None:
        super().write(path, data, mode)
        self._fail("write")

    def rename(self, path: Path, to: Path) -> None:
        self._fail("rename")
        super().rename(path, to)

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self._fail("sync")

    def _fail(self, verb: str) -> None:
        if verb == self.verb:
            self.verb = ""
            raise self.error


def opened(folder: Path, files: Files | None = None, cap_bytes: int = 10**6) -> DiskTier:
    tier = DiskTier(folder / "kv", cap_bytes, ManualClock(), NoTrace(), files=files)
    tier.changes()
    return tier


def contents(tier: DiskTier) -> bytes | None:
    tier.changes()
    handle = tier.open(KEY)
    if handle is None:
        return None
    data = bytes(handle.read(0, handle.buffer.nbytes))
    handle.close()
    return data


@pytest.mark.parametrize("error", [BROKEN, KeyboardInterrupt()])
@pytest.mark.parametrize(("verb", "kept"), [("write", PLAIN), ("rename", PLAIN), ("sync", PACKED)])
def test_a_rewrite_that_fails_leaves_one_form_whole_and_counted(
    tmp_path: Path, verb: str, kept: EncodedBlock, error: BaseException
) -> None:
    files = FailsOnce()
    tier = opened(tmp_path, files)
    tier.put(PLAIN, nobody)
    files.verb, files.error = verb, error
    with pytest.raises((StoreError, KeyboardInterrupt)):
        tier.replace(PACKED, nobody)
    assert contents(tier) == bytes(kept.data)
    assert tier.usage().size_bytes == kept.size_bytes
    tier.check()
    tier.close()


@pytest.mark.parametrize("verb", ["write", "rename", "sync"])
def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path, verb: str) -> None:
    files = FailsOnce()
    tier = opened(tmp_path, files)
    tier.put(OTHERS, nobody)
    files.verb = verb
    with pytest.raises(StoreError):
        tier.put(PLAIN, nobody)
    assert contents(tier) is None
    assert tier.usage().size_bytes == OTHERS.size_bytes
    tier.check()
    tier.close()


def test_a_rewrite_whose_commit_was_lost_is_counted_at_the_next_opening(tmp_path: Path) -> None:
    """As after a power cut between the new file and its row: 16,384 bytes by the row, 16,576 there."""
    tier = opened(tmp_path)
    tier.put(PLAIN, nobody)
    tier.close()
    (tmp_path / "kv" / "blocks" / KEY[:2] / f"{KEY}.kdn").write_bytes(PACKED.data)
    tier = opened(tmp_path)
    assert contents(tier) == bytes(PACKED.data)
    assert (PLAIN.size_bytes, tier.usage().size_bytes) == (16384, 16576)
    tier.check()
    tier.close()


def test_a_rewrite_takes_the_room_of_others_and_not_its_own(tmp_path: Path) -> None:
    """The old form stays until the new one is there, also where it is the first to go."""
    tier = opened(tmp_path, cap_bytes=2 * PLAIN.size_bytes)
    tier.put(PLAIN, nobody)
    tier.put(OTHERS, nobody)
    with pytest.raises(NoSpace, match="does not fit"):
        tier.replace(PACKED, nobody)
    assert contents(tier) == bytes(PLAIN.data)
    assert tier.holds(OTHER), "nothing goes for what does not fit"
    tier.close()
    tier = opened(tmp_path, cap_bytes=PLAIN.size_bytes + PACKED.size_bytes)
    tier.replace(PACKED, nobody)
    assert contents(tier) == bytes(PACKED.data)
    assert not tier.holds(OTHER)
    tier.check()
    tier.close()
