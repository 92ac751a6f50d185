"""The codec benchmark on a tiny model: every row and every summary key is there, and ordered."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdn.bench import Result
from kdn.store import CODECS


@pytest.mark.slow
def test_every_codec_has_its_row(benched: Callable[[str], Result]) -> None:
    result = benched("codecs")
    rows = {str(row["codec"]): row for row in result.rows}
    assert set(CODECS) < set(rows)
    assert {"zstd-1 on plain bytes", "CacheGen's bins", "no document"} < set(rows)
    summary = result.summary
    assert summary["lossless_gain"] is not None
    assert summary["kl_int8"] is not None
    assert summary["kl_wrong_document"] is not None
    assert 0 < summary["kl_int8"] < summary["kl_wrong_document"]
    assert summary["entropy_gain_qwen"] is None, "quick leaves the second model out"
    assert rows["none"]["gain"] == 1
