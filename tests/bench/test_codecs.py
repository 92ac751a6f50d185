"""The codec benchmark on a tiny model: every row and every summary key is there, and ordered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdn.bench import BenchOptions, load_bench
from kdn.store import CODECS


def test_every_codec_has_its_row(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_model("llama", max_position_embeddings=4096)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Door {n} opens at {n * 7}. " for n in range(400)))
    options = BenchOptions(model=str(folder), home=tmp_path, data=text, quick=True, threads=1)
    result = load_bench("codecs")(options)
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
