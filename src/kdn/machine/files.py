"""Files that are whole or absent, and the one place through which the system's errors come.

`publish_file` writes one file whole.  The disk tier writes many and uses the longer operations of `Files`.
Everything changes the disk through the verbs of `Files`, so that a test can pass another in its place
and see every state in which a power cut may leave a folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from kdn.errors import BadConfig, BadInput, NoSpace, StoreError

__all__ = [
    "READABLE",
    "Files",
    "expanded",
    "home_folder",
    "is_there",
    "locked",
    "make_private",
    "make_tree_private",
    "output_mode",
    "publish_file",
    "publish_first",
    "publish_made",
    "publishing",
    "readable_folder",
    "refuse_output",
    "refuse_special",
    "refuse_unwritable",
    "system_errors",
    "try_lock",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}
"""What a file system says that has no O_DIRECT, or wants other alignments for it."""
_DIRECT_FROM, _PAGE = 1 << 20, 4096
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
READABLE = 0o644
"""The mode of a file that a user asked for by its name."""


def home_folder(environ: Mapping[str, str]) -> Path:
    """`$KDN_HOME`, or the user's cache folder for kdn."""
    chosen = environ.get("KDN_HOME")
    return expanded(chosen) if chosen else Path.home() / ".cache" / "kdn"


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path, with the folder of a user in place of `~` or `~name`.

    Raises BadInput for a user that the machine does not know, and for a NUL, which no path holds.
    """
    if "\0" in str(path):
        raise BadInput(f"{str(path)[:80]!r} holds a NUL character, which no path does; remove it")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{str(path)[:80]!r}: no such user here; write the whole path") from error


def is_there(word: str | os.PathLike[str]) -> bool:
    """Is it the path of something? A word that can be no path, or that may not be looked at, is not."""
    return os.path.exists(word)  # noqa: PTH110  pathlib raises for a name that is too long


def readable_folder(folder: Path) -> Path:
    """The folder itself, which may be missing: it is made when something is written.

    Raises BadConfig where it cannot be read: it would look empty to whatever looks for files in it.
    """
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        reason, named = error.strerror or str(error), str(folder)[:200]
        raise BadConfig(f"{named} cannot be read: {reason}; choose another folder") from error
    return folder


@contextmanager
def system_errors(doing: str) -> Iterator[None]:
    """Translate OSError: NoSpace when the device (or a quota) is full, StoreError otherwise."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise NoSpace(
                f"{doing}: {reason}; free some space, choose another folder, or lower the store's cap"
            ) from error
        raise StoreError(f"{doing}: {reason}; check the folder or choose another") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process that asks for this file's lock is inside."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> IO[bytes] | None:
    """The file, locked until it is closed or the process ends; None while another holder has the lock.

    A file that is missing is made.  Raises OSError.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE), "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone. Raises OSError."""
    Files().make_folders(folder)


def make_tree_private(folder: Path) -> None:
    """Take the rights of others from all below the folder: libraries write by the user's umask.

    What goes away meanwhile is passed by, and so is what belongs to another user.
    """
    for path in [folder, *folder.rglob("*")]:
        with suppress(FileNotFoundError, PermissionError):
            mode = path.lstat().st_mode
            if mode & 0o077 and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~0o077)


def refuse_output(path: Path) -> None:
    """Raises BadInput where no file can be written to `path`, so that it is known before any work is done."""
    refuse_special(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: there is no folder {path.parent}; make it, or choose another")
    refuse_unwritable(path, path.parent)


def refuse_special(path: Path) -> None:
    """Raises BadInput for a folder, device or pipe: a file that is published would take its place."""
    mode = output_mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise BadInput(f"{path} is a folder; name a file in it")
    if mode is not None and not stat.S_ISREG(mode):
        raise BadInput(f"{path} is a device, a pipe or a socket; name a file")


def output_mode(path: Path) -> int | None:
    """The mode of what is at the path of an output; None where nothing is.

    Raises BadInput where the system does not look there, as for a name that is too long.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadInput(
            f"{str(path)!r:.200} can be no output ({error.strerror}); choose another"
        ) from error


def refuse_unwritable(path: Path, folder: Path) -> None:
    """Raises BadInput where nothing can be made in `folder`, so that `path` cannot be written.

    It is tried: for root, rights do not say that a file system takes nothing.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadInput(
            f"{path}: nothing can be written in {folder} ({error.strerror}); choose another folder"
        ) from error


def publish_file(
    path: Path, data: bytes | memoryview, mode: int = _PRIVATE_FILE, files: Files | None = None
) -> None:
    """Write `path` whole: readers and power cuts leave the old file or all of the new one.

    Folders that are missing are made, and a link stays a link. When it returns, the file is on the device.
    Raises NoSpace when the device is full, StoreError when the file cannot be written.
    """
    files = files or Files()
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with system_errors(f"writing {path}"):
        files.make_folders(path.parent)
        try:
            files.write(temporary, memoryview(data), mode)
            files.rename(temporary, path)
        except BaseException:
            files.remove(temporary)
            raise
        files.sync_folder(path.parent)


def publish_first(path: Path, data: bytes | memoryview, files: Files | None = None) -> None:
    """Write `path` whole, unless it is there: of two processes that do it the first one's stays.

    When it returns, the file is on the device. Raises OSError, NoSpace and StoreError.
    """
    files = files or Files()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    files.write_temporary(temporary, memoryview(data))
    try:
        files.link(temporary, path)
    except FileExistsError:
        pass  # the other process's holds
    finally:
        files.remove(temporary)
    files.sync_folder(path.parent)


def publish_made(
    path: Path, data: bytes, mode: int = _PRIVATE_FILE, spare: Path | None = None
) -> None:
    """As `publish_file`, for what took long to make: where it cannot be written it is kept in the folder
    `spare` (the system's for temporary files unless named), private, and the error says under which name."""
    try:
        publish_file(path, data, mode)
    except StoreError as error:
        kept = (spare or Path(tempfile.gettempdir())) / f"kdn-{secrets.token_hex(4)}-{path.name}"
        try:
            publish_file(kept, data)
        except StoreError:
            raise error from None
        raise type(error)(f"{error}; what was made is kept as {kept}") from error


@contextmanager
def publishing(path: Path) -> Iterator[IO[bytes]]:
    """As `publish_file`, for what is written piece by piece: nothing is there unless the block ends well."""
    files = Files()
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with system_errors(f"writing {path}"):
        files.make_folders(path.parent)
        try:
            with open(temporary, "xb", opener=partial(os.open, mode=_PRIVATE_FILE)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            files.rename(temporary, path)
        except BaseException:
            files.remove(temporary)
            raise
        files.sync_folder(path.parent)


class Files:
    """What touches the disk. Nothing counts as durable until it and its folder are synced.

    The verbs below are all that touches the disk; the operations above them are made of these.
    Files and folders are readable by their owner only, unless a mode says otherwise.
    """

    def __init__(self) -> None:
        self._durable: set[Path] = set()

    def write_temporary(self, path: Path, data: memoryview) -> None:
        """Write all of `data` to `path` and on to the device. Nothing is left of it when that fails."""
        with system_errors(f"writing {path}"):
            try:
                self.write(path, data)
            except BaseException:
                self.remove(path)
                raise

    def publish(self, temporary: Path, final: Path) -> None:
        """Give a written file its name, for good: it is there after a power cut, too."""
        with system_errors(f"publishing {final}"):
            self.make_durable(final.parent)
            self.rename(temporary, final)
            self.sync_folder(final.parent)

    def make_folders(self, path: Path) -> None:
        """Make the folder and those above it that are missing; they outlive a power cut."""
        if not path.exists():
            self.make_folders(path.parent)
            self.make_durable(path)

    def make_durable(self, folder: Path) -> None:
        """Make a folder that outlives a power cut; its parent is there.

        One that is there may be another process's that has not synced it yet, so each syncs it once.
        """
        if folder not in self._durable or not folder.exists():
            self.make_folder(folder)
            self.sync_folder(folder.parent)
            self._durable.add(folder)

    def move(self, path: Path, to: Path) -> int:
        """Move a file, without waiting for the device; its size."""
        self.rename(path, to)
        return to.stat().st_size

    # --- the verbs ---

    def write(self, path: Path, data: memoryview, mode: int = _PRIVATE_FILE) -> None:
        """Make the file `path`, fill it and sync it. Raises FileExistsError when it is there.

        Large data that begins at a page goes past the system's cache, where the file system can.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            rest = data[_write_direct(descriptor, data) :]
            while rest.nbytes:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, descriptor: int, into: memoryview, start: int) -> int:
        """Fill `into` from `start` of a file on; how many bytes came, 0 at its end."""
        return os.preadv(descriptor, [into], start)

    def takes_writes(self, folder: Path) -> bool:
        """False for a folder that is there, and that rights or a read-only file system protect."""
        return not folder.is_dir() or os.access(folder, os.W_OK)

    def rename(self, path: Path, to: Path) -> None:
        path.replace(to)

    def link(self, path: Path, to: Path) -> None:
        """A second name. Raises FileExistsError when it is taken."""
        os.link(path, to)

    def remove(self, path: Path) -> None:
        """Remove a file that may already be gone."""
        with suppress(FileNotFoundError):
            path.unlink()

    def make_folder(self, path: Path) -> None:
        path.mkdir(_PRIVATE_FOLDER, exist_ok=True)

    def sync_folder(self, path: Path) -> None:
        """Bring the folder's names on to the device."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_direct(descriptor: int, data: memoryview) -> int:
    """Write the whole pages of large data with O_DIRECT; how many bytes, 0 where that cannot be done.

    The cache's own copy took 0.3 to 2 ms of processor time for a MB, in pages that nobody reads: what is
    large was in memory just now.  Without it a MB takes 0.1 ms.
    """
    if data.nbytes < _DIRECT_FROM or not hasattr(os, "O_DIRECT"):
        return 0
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    rest = data[: data.nbytes // _PAGE * _PAGE]
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        while rest.nbytes:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return data.nbytes // _PAGE * _PAGE - rest.nbytes
