"""Train the packaged policies: `python scripts/rtc/train_policies.py [--steps N]`, a few minutes of one core.

PPO with each reward, and one learned from GCC's logs; into src/kdn/net/rtc/weights/policies.npz.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kdn.net.rtc.judge import training_tables
from kdn.net.rtc.learn import Learning, learn_offline, learn_online, validate
from kdn.net.rtc.policy import Learned, Policy, save_policies
from kdn.net.rtc.reward import REWARDS

OUT = Path(__file__).parents[2] / "src" / "kdn" / "net" / "rtc" / "weights" / "policies.npz"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    tables = training_tables()
    policies: list[Policy] = []
    for reward in REWARDS:
        learning = Learning(reward, safeguard=reward == "onrl", steps=steps)
        policy, curve = learn_online(tables, learning)
        policies.append(policy)
        print(f"{reward}: {max(quality for _, quality in curve.points):.3f}", flush=True)
    offline = learn_offline(tables)
    policies.append(offline)
    print(f"offline: {validate(tables, lambda: Learned(offline)):.3f}", flush=True)
    save_policies(policies, OUT)


if __name__ == "__main__":
    main()
