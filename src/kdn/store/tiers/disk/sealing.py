"""Whether a store's folder is sealed: decided with its first block, and the same for all that follow."""

from __future__ import annotations

import msgspec

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, ForeignStore
from kdn.machine.files import Files, publish_file, system_errors
from kdn.store.tiers.disk.block_files import StoreFolder
from kdn.store.tiers.seal import BODY, KeyRing, is_sealed

__all__ = ["check_seal"]


class _Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kdn_seal: int
    check: str | None
    """What the key that blocks are sealed with makes of the store's identity; None: they are not sealed."""


def check_seal(folder: StoreFolder, files: Files, ring: KeyRing | None) -> None:
    """Raises ForeignStore unless the folder is sealed with the ring's key, or with none if there is no ring.

    A folder that says nothing yet is told by its blocks; without any, `ring` decides. To be called inside
    `opening`.
    """
    path = folder.path / "seal.json"
    check = None if ring is None else ring.check_value(folder.identity)
    with system_errors(f"reading {path}"):
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Seal)
        except FileNotFoundError:
            _check_blocks(folder, ring)
            if not folder.read_only:
                publish_file(path, msgspec.json.encode(_Seal(1, check)), files=files)
            return
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ForeignStore(
                f"{path} cannot be read ({error}): remove it, then the blocks say whether they are sealed"
            ) from error
    _compare(folder, ring, sealed=found.check is not None, is_right=found.check == check)


def _compare(folder: StoreFolder, ring: KeyRing | None, *, sealed: bool, is_right: bool) -> None:
    where = f"the store {folder.path}"
    if sealed and ring is None:
        raise ForeignStore(
            f"{where} is sealed: give the key file it was written with (store.key_file), or use another"
            " folder"
        )
    if not sealed and ring is not None:
        raise ForeignStore(
            f"{where} holds blocks that are not sealed: seal blocks in another folder, or open it without"
            " a key"
        )
    if not is_right:
        raise ForeignStore(
            f"{where} is sealed with another key: give the key file it was written with"
            " (store.key_file), or use another folder"
        )


def _check_blocks(folder: StoreFolder, ring: KeyRing | None) -> None:
    """A folder with sealed blocks is sealed, one with other blocks is not.

    The key is right when it opens any: the others may be damaged.
    """
    plain, sealed, opens = False, False, False
    for key in folder.blocks():
        front = _front(folder, key)
        if is_sealed(front):
            sealed = True
            opens = opens or (ring is not None and _opens(ring, key, front))
        else:
            plain = plain or bool(front)
    if plain or sealed:
        _compare(folder, ring, sealed=sealed, is_right=opens or not sealed)


def _front(folder: StoreFolder, key: BlockKey) -> bytes:
    try:
        with folder.block(key).open("rb") as file:
            return file.read(BODY)
    except FileNotFoundError:
        return b""


def _opens(ring: KeyRing, key: BlockKey, front: bytes) -> bool:
    if len(front) < BODY:
        return False
    try:
        ring.name_in(key, front)
    except CorruptBlock:
        return False
    return True
