"""What people call: `kdn.open(...)` and the verbs of the object that it returns.

Trades in texts and answers.  The CLI, the servers, the benchmarks and users import it; it builds and
joins every other room.  Start reading at `kdn.py`, then `build.py`.
"""

from kdn.api.aio import AsyncKdn
from kdn.api.answering import Answering
from kdn.api.answers import Answer, Source, SteerReport
from kdn.api.build import open, over  # noqa: A004  kdn.open, as in gzip.open
from kdn.api.kdn import Kdn
from kdn.api.models import OpenModels, open_models
from kdn.api.prompts import Reuse, ShareMode, blending, sharing
from kdn.api.queries import Query, QueryOptions
from kdn.api.query_stream import AskLibrary, QueryStream
from kdn.api.steering import AskSteering, Steering
from kdn.rank import RankedDocument, Ranking

__all__ = [
    "Answer",
    "Answering",
    "AskLibrary",
    "AskSteering",
    "AsyncKdn",
    "Kdn",
    "OpenModels",
    "Query",
    "QueryOptions",
    "QueryStream",
    "RankedDocument",
    "Ranking",
    "Reuse",
    "ShareMode",
    "Source",
    "SteerReport",
    "Steering",
    "blending",
    "open",
    "open_models",
    "over",
    "sharing",
]
