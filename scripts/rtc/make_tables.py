"""Weights and tables of the package from training checkpoints.

`python -m scripts.rtc.make_tables MASKED.pt TWIN.pt [--pictures N]` writes codec.npz, twin.npz and tables.npz
into src/kdn/net/rtc/weights; without checkpoints, tables.npz of the weights that are there.  Tables of
`bikes` and `generated-91` are for tests, the others for training.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from scripts.rtc.classical import h264_table
from scripts.rtc.fit import fit_tables
from scripts.rtc.measure import measure_codec

from kdn.net.rtc.clips import Clip, generated, packaged
from kdn.net.rtc.codec.network import CodecNetwork
from kdn.net.rtc.codec.neural import NeuralCodec, load_codec, save_codec
from kdn.net.rtc.tables import RateTable, write_tables

WEIGHTS = Path(__file__).parents[2] / "src" / "kdn" / "net" / "rtc" / "weights"


def trained(checkpoint: Path, masked: bool) -> NeuralCodec:
    network = CodecNetwork(masked)
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["network"])
    clips = [packaged("bigbuckbunny", 240, 60), packaged("carphone_pristine")]
    return fit_tables(network.eval(), clips, every=12)


def table_clips(pictures: int) -> list[Clip]:
    return [
        packaged("bigbuckbunny", 208, pictures),
        generated(3, pictures, 208, 320),
        packaged("bikes", 208, pictures),
        generated(91, pictures, 208, 320),
    ]


def measured(work: tuple[str, int, int]) -> RateTable:
    """One table: the codec named, on one of the clips."""
    torch.set_num_threads(1)
    name, index, pictures = work
    clip = table_clips(pictures)[index]
    if name == "h264":
        return h264_table(clip)
    began = time.monotonic()
    table = measure_codec(load_codec(masked=name == "masked"), name, clip)
    print(f"{name} {clip.name}: {time.monotonic() - began:.0f} s", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", type=Path, nargs="*", metavar="MASKED.pt TWIN.pt")
    parser.add_argument("--pictures", type=int, default=24)
    given = parser.parse_args()
    WEIGHTS.mkdir(exist_ok=True)
    if given.checkpoints:
        masked, twin = given.checkpoints
        save_codec(trained(masked, masked=True), WEIGHTS / "codec.npz")
        save_codec(trained(twin, masked=False), WEIGHTS / "twin.npz")
    work = [
        (name, index, given.pictures)
        for index in range(4)
        for name in ("h264", "masked", "unmasked")
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        write_tables(list(pool.map(measured, work)), WEIGHTS / "tables.npz")


if __name__ == "__main__":
    main()
