"""The library: documents in, passages and parts of prompts out.

Trades in text: files to documents, documents to passages and parts, questions to the parts that
answer them.  `calibration`, `api` and the rooms above may import it.  Start reading at `library.py`,
then `ingest.py` along one file; `bounds.py` says what a file may cost.
"""

from kdn.rag.answering import AnswerPiece, Citation, answer_instruction, answer_pieces, cite
from kdn.rag.cut import Cutting, Encode, Passage
from kdn.rag.documents import Heading, Paragraph, ParsedDocument, Section, compose
from kdn.rag.embed import Embedder, Vectors
from kdn.rag.files import Refusal
from kdn.rag.ingest import IngestReport, Progress
from kdn.rag.library import Library, LibrarySettings, SearchMode
from kdn.rag.results import Hit, LibraryStat, Part, SourceInfo
from kdn.rag.support import Support
from kdn.rag.survey import Survey

__all__ = [
    "AnswerPiece",
    "Citation",
    "Cutting",
    "Embedder",
    "Encode",
    "Heading",
    "Hit",
    "IngestReport",
    "Library",
    "LibrarySettings",
    "LibraryStat",
    "Paragraph",
    "ParsedDocument",
    "Part",
    "Passage",
    "Progress",
    "Refusal",
    "SearchMode",
    "Section",
    "SourceInfo",
    "Support",
    "Survey",
    "Vectors",
    "answer_instruction",
    "answer_pieces",
    "cite",
    "compose",
]
