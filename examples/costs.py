"""What the KV of a context costs to keep and saves when it is used, by tier. No model is opened.

python examples/costs.py
"""

import json
import subprocess
import sys

command = [sys.executable, "-m", "kdn", "cost", "advise", "--context", "10000", "--json"]
done = subprocess.run(command, check=True, capture_output=True, text=True)
print(json.dumps(json.loads(done.stdout), indent=1)[:600])
