"""One of two labels for each text, with its probability.

python examples/label.py
"""

import os

import kdn

ROWS = [{"text": "The parcel never came."}, {"text": "Thank you for the quick delivery."}]
with kdn.open(os.environ.get("EXAMPLE_MODEL", "smollm2-135m")) as k:
    table = k.label(ROWS, "Is this a complaint? {text}", ["Yes", "No"])
    print(table)
