"""A small classifier of questions: logistic regressions over hashed words and the rules' cues.

`scripts/train_profiler.py` trains it and states its accuracy on held-out questions; its weights lie
beside this file.  A profile takes some ten microseconds a word.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdn.errors import ProfileFailed
from kdn.rag.metis.profile import LibraryNote, QuestionProfile, RuleProfiler

__all__ = ["HEADS", "NUM_FEATURES", "ClassifierProfiler", "ProfileWeights", "question_features"]

NUM_FEATURES = 1024
_CUES = 16
"""The first features are cues; words are hashed to the others."""
HEADS: Mapping[str, tuple[int, ...]] = {
    "joint": (0, 1),
    "complex": (0, 1),
    "pieces": (1, 2, 3, 5, 8),
    "long": (0, 1),
}
"""Each output with the values of its classes."""
_SUMMARIES = {0: (30, 80), 1: (60, 150)}
_FILE = Path(__file__).parent / "trained" / "profile.npz"
_WORD = re.compile(r"\w+")
_NO_NOTE = LibraryNote("", 0)


def question_features(question: str) -> NDArray[np.float32]:
    """[NUM_FEATURES]: a constant, cues of the rules, lengths, and which words and pairs there are."""
    words = [word.lower() for word in _WORD.findall(question)]
    found = np.zeros(NUM_FEATURES, dtype=np.float32)
    ruled = RuleProfiler().profile(question, _NO_NOTE)
    found[0] = 1.0
    found[1:5] = (
        ruled.is_joint,
        ruled.is_complex,
        ruled.num_pieces / 4,
        ruled.summary_tokens[0] / 60,
    )
    found[5] = len(words) / 20
    found[6] = sum(word[:1].isupper() for word in question.split()[1:]) / 5
    found[7] = any(sign.isdigit() for sign in question)
    begins = [f"^{words[0]}", f"^{' '.join(words[:2])}"] if words else []
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    for text in {*words, *pairs, *begins}:
        place = zlib.crc32(text.encode()) % (NUM_FEATURES - _CUES)
        found[_CUES + place] = 1.0
    return found


@dataclass(frozen=True)
class ProfileWeights:
    """[features, classes] of each head."""

    heads: Mapping[str, NDArray[np.float32]]

    @staticmethod
    def read(path: Path = _FILE) -> ProfileWeights:
        """Raises ProfileFailed when the file is missing, torn, or of another form."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                heads = {name: file[name].astype(np.float32) for name in HEADS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ProfileFailed(f"{path} holds no weights of a profiler: {error}") from error
        for name, weights in heads.items():
            if weights.shape != (NUM_FEATURES, len(HEADS[name])) or not np.isfinite(weights).all():
                raise ProfileFailed(f"{path}: the weights of {name} have the form {weights.shape}")
        return ProfileWeights(heads)

    def probabilities(self, head: str, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[..., classes] of features [..., NUM_FEATURES]."""
        scores = features @ self.heads[head]
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares: NDArray[np.float32] = scores / scores.sum(axis=-1, keepdims=True)
        return shares


class ClassifierProfiler:
    """Profiles by trained weights; sure as the geometric mean of its heads' best classes."""

    name = "classifier"

    def __init__(self, weights: ProfileWeights | None = None) -> None:
        """Raises ProfileFailed when the packaged weights cannot be read."""
        self._weights = weights or ProfileWeights.read()

    def profile(self, question: str, note: LibraryNote) -> QuestionProfile:
        features, chosen, sure = question_features(question), dict[str, int](), list[float]()
        for head, classes in HEADS.items():
            shares = self._weights.probabilities(head, features)
            best = int(shares.argmax())
            chosen[head] = classes[best]
            sure.append(float(shares[best]))
        return QuestionProfile(
            is_joint=bool(chosen["joint"]),
            is_complex=bool(chosen["complex"]),
            num_pieces=chosen["pieces"],
            summary_tokens=_SUMMARIES[chosen["long"]],
            confidence=min(float(np.exp(np.mean(np.log(sure)))), 1.0),
            source=self.name,
        )
