"""kdn store calibrate: what lossy codecs do to a model, measured and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import JsonOption, ModelChoice
from kdn.cli.show import emit, say, table
from kdn.machine.files import readable_folder

if TYPE_CHECKING:
    from kdn.reuse.codec_quality import QualityRecord

__all__ = ["calibrate", "records_of", "show_record"]


@grouped
def calibrate(
    *,
    choice: ModelChoice,
    data: Annotated[
        Path | None, typer.Option(exists=True, help="Text to measure on; shipped PEPs by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what every lossy codec does to this model's answers, and keep the record.

    Without a record no lossy codec is ever chosen by itself.
    """
    from kdn.calibration.codecs import calibrate as measure
    from kdn.calibration.codecs import probes, read_texts
    from kdn.clock import SystemClock
    from kdn.corpus import corpus_files
    from kdn.reuse.codec_quality import save_record

    texts = read_texts(data) if data else [file.read_text("utf-8") for file in corpus_files()]
    with choice.open() as opened:
        pieces = probes(opened.model, texts, say=say)
        record = measure(opened.model, pieces, SystemClock(), say=say)
        path = save_record(opened.config.home, record)
    if as_json:
        emit(record)
        return
    show_record(record)
    say(f"kept in {path}")


def show_record(record: QualityRecord) -> None:
    """One line a codec, and the scale to read it on."""
    rows = [
        (name, f"{one.gain:.2f}", f"{one.kl:.2g}", f"{one.kl_p99:.2g}", f"{one.changed_share:.1%}")
        for name, one in sorted(record.codecs.items(), key=lambda item: item[1].kl)
    ]
    rows += [
        ("another document", "-", f"{record.kl_wrong_document:.2g}", "-", "-"),
        ("no document", "-", f"{record.kl_no_context:.2g}", "-", "-"),
    ]
    title = f"{record.model}: {record.positions} positions of text"
    table(title, ("context through", "gain", "mean KL", "p99 KL", "changed tokens"), rows)


def records_of(home: Path) -> list[QualityRecord]:
    """Every record in this home folder that can be read."""
    from kdn.core import Fingerprint
    from kdn.reuse.codec_quality import load_record

    names = sorted(path.stem for path in readable_folder(home / "calibration").glob("*.json"))
    found = (load_record(home, Fingerprint(name)) for name in names)
    return [record for record in found if record is not None]
