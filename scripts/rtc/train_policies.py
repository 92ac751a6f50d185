"""Train the packaged policies: `python scripts/rtc/train_policies.py [NAME ...] [--steps N] [--seeds N]`.

PPO with each reward, for equally many steps and seeds, of which the one that validates best is kept; and
`offline`, learned from GCC's logs; into src/kdn/net/rtc/weights/policies.npz.  With names, those alone: the
others stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kdn.net.rtc.judge import training_tables
from kdn.net.rtc.learn import Learning, learn_offline, learn_online, validate
from kdn.net.rtc.policy import Learned, Policy, load_policies, save_policies
from kdn.net.rtc.reward import REWARDS

OUT = Path(__file__).parents[2] / "src" / "kdn" / "net" / "rtc" / "weights" / "policies.npz"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*REWARDS, "offline"])
    parser.add_argument("--steps", type=int, default=40_960)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tables = training_tables()
    names = given.names or [*REWARDS, "offline"]
    policies = load_policies() if given.names else {}
    for reward in (name for name in names if name in REWARDS):
        found: list[tuple[float, Policy]] = []
        for seed in range(1, given.seeds + 1):
            learning = Learning(reward, reward == "onrl", given.steps, seed)
            policy, curve = learn_online(tables, learning)
            found.append((max(quality for _, quality in curve.points), policy))
            print(f"{reward}, seed {seed}: {found[-1][0]:.3f}", flush=True)
        policies[reward] = max(found, key=lambda one: one[0])[1]
    if "offline" in names:
        policies["offline"] = offline = learn_offline(tables)
        print(f"offline: {validate(tables, lambda: Learned(offline)):.3f}", flush=True)
    save_policies(list(policies.values()), OUT)


if __name__ == "__main__":
    main()
