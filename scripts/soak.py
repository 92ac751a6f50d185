"""A campaign of faults against a real `kdn serve` under traffic; see tests/soak and docs/reliability.md.

Exit code 1 when anything was wrong, lost, or did not hold.

python scripts/soak.py --minutes 10 --seed 3
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.soak.campaign import Campaign
from tests.soak.report import as_json, faults_found, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=6, help="kill -9 of the server")
    parser.add_argument("--json", action="store_true", help="the numbers as one JSON object")
    parser.add_argument("--work", type=Path, help="keep logs and stores in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdn-soak-") as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        seconds = 60 * options.minutes
        campaign = Campaign(work, options.seed, seconds, per_s=1.1, kills=options.kills)
        outcome = campaign.run()
    found = faults_found(outcome, light_p99_s=30.0, recovery_s=5.0)
    if options.json:
        print(json.dumps({**as_json(outcome), "faults_found": found}, default=str))
    else:
        print(table(outcome))
        print("\n".join(["", *(f"FAULT: {one}" for one in found)]))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
