"""Text to ids and back: nothing lost, nothing smuggled, no half characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdn.errors import WeightsError
from kdn.model import Tokenizer, load_model
from kdn.model.gguf.file import unpack_gguf
from kdn.model.text.tokenizer import load_tokenizer

SPECIMENS = (
    "This PEP contains the index of all Python Enhancement Proposals, known as PEPs.",
    'def f(x: int = 42) -> str:\n    """Docs."""\n    return f"{x:>10}"\n\n\n# 2024-01-31\n',
    "Zażółć gęślą jaźń; 東京タワー, नमस्ते, e\u0301 \u00e9 👩‍👩‍👧 \u200b|\t\r\n   x 1234567890",
    "  leading, it's we'll DON'T  trailing  \n\n \n",
)


@pytest.fixture(scope="module")
def bytes_tokenizer(tiny_model: Callable[..., Path]) -> Tokenizer:
    return load_tokenizer(tiny_model("llama"))[0]


def test_a_byte_is_a_token(bytes_tokenizer: Tokenizer) -> None:
    assert bytes_tokenizer.encode("Aé") == (65, 0xC3, 0xA9)
    assert bytes_tokenizer.decode((65, 0xC3, 0xA9)) == "Aé"
    assert bytes_tokenizer.eos_ids == (256,)


def test_control_tokens_are_text_unless_asked_for(bytes_tokenizer: Tokenizer) -> None:
    said = bytes_tokenizer.encode("hi<|end|>")
    assert max(said) < 256
    assert bytes_tokenizer.decode(said) == "hi<|end|>"
    assert bytes_tokenizer.encode("hi<|end|>x", special=True) == (*b"hi", 256, *b"x")
    assert bytes_tokenizer.decode((104, 256)) == "h"
    assert bytes_tokenizer.decode((104, 256), special=True) == "h<|end|>"


def test_the_bytes_of_tokens_join_to_the_text(bytes_tokenizer: Tokenizer) -> None:
    for text in SPECIMENS:
        pieces = [bytes_tokenizer.token_bytes(one) for one in bytes_tokenizer.encode(text)]
        assert b"".join(pieces) == text.encode()
    assert bytes_tokenizer.token_bytes(0xC3) == b"\xc3"
    assert bytes_tokenizer.token_bytes(256) == b"<|end|>"
    assert bytes_tokenizer.token_bytes(10**6) == b""


@pytest.mark.model
def test_the_bytes_of_published_tokens_join_to_the_text(smollm2: Path, model_cache: Path) -> None:
    tokenizer = load_model(smollm2, cache_dir=model_cache, dtype="float32").tokenizer
    for text in SPECIMENS:
        pieces = [tokenizer.token_bytes(one) for one in tokenizer.encode(text)]
        assert b"".join(pieces) == text.encode()


def test_half_a_character_is_held_back(bytes_tokenizer: Tokenizer) -> None:
    stream = bytes_tokenizer.detokenizer()
    euro = "€".encode()  # three bytes
    assert [stream.push(byte) for byte in b"a" + euro + b"b"] == ["a", "", "", "€", "b"]
    assert stream.push(euro[0]) == ""
    assert stream.flush() == ""


def test_flush_gives_what_was_whole(bytes_tokenizer: Tokenizer) -> None:
    stream = bytes_tokenizer.detokenizer()
    assert stream.push(0xE2) == ""
    assert stream.push(ord("x")) == "\ufffdx"  # the character was never finished: say so, go on
    assert stream.flush() == ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_streaming_equals_decoding(bytes_tokenizer: Tokenizer, text: str) -> None:
    token_ids = bytes_tokenizer.encode(text)
    stream = bytes_tokenizer.detokenizer()
    pieces = [stream.push(token) for token in token_ids]
    assert "".join(pieces) + stream.flush() == text.rstrip("\ufffd") or text.endswith("\ufffd")
    assert bytes_tokenizer.decode(token_ids) == text


PIECES = ("<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hello", "x")
BLANK, HELLO, LETTER, END = 257, 258, 259, 260


def pieces_definition() -> str:
    """As SentencePiece's are published: a first word's space goes, and bytes spell what no piece covers."""
    model = tokenizers.models.BPE(
        {piece: i for i, piece in enumerate(PIECES)}, [], unk_token="<unk>", byte_fallback=True
    )
    made = tokenizers.Tokenizer(model)
    parts = tokenizers.decoders
    made.decoder = parts.Sequence(
        [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["</s>"])
    return made.to_str()


@pytest.fixture(scope="module")
def pieces_tokenizer() -> Tokenizer:
    return Tokenizer(pieces_definition())


def spelt(text: str) -> list[int]:
    """The text in byte tokens."""
    return [1 + byte for byte in text.encode()]


def streamed(tokenizer: Tokenizer, token_ids: Sequence[int], *, special: bool = False) -> str:
    stream = tokenizer.detokenizer(special=special)
    return "".join(stream.push(token) for token in token_ids) + stream.flush()


def test_a_word_keeps_its_space_behind_a_spelt_character(pieces_tokenizer: Tokenizer) -> None:
    stream = pieces_tokenizer.detokenizer()
    pushed = [stream.push(token) for token in (HELLO, *spelt("😀"), HELLO)]
    assert pushed == ["hello", "", "", "", "😀", " hello"]


def test_a_word_by_itself_keeps_its_space(pieces_tokenizer: Tokenizer) -> None:
    """So it stands among the alternatives of an answer's log-probabilities."""
    tokens = (BLANK, HELLO, LETTER, END, *spelt("a"), *spelt("é"))
    texts = [" ", " hello", "x", "</s>", "a", "\ufffd", "\ufffd"]
    assert [pieces_tokenizer.token_text(token) for token in tokens] == texts


def test_a_word_keeps_its_space_behind_a_special_token(pieces_tokenizer: Tokenizer) -> None:
    said = (HELLO, END, HELLO)
    assert streamed(pieces_tokenizer, said) == "hello hello"
    assert streamed(pieces_tokenizer, said, special=True) == "hello</s> hello"


def test_a_byte_that_fits_nowhere_takes_nothing_with_it(pieces_tokenizer: Tokenizer) -> None:
    """The library gives up on all bytes beside it, which were shown already."""
    said = (*spelt("😀"), 1 + 0x80, HELLO)
    assert streamed(pieces_tokenizer, said) == "😀\ufffd hello"


def test_bytes_that_never_become_a_character_are_decoded_a_few_at_a_time() -> None:
    """2,000 of them: each push decodes what is held and what gave the last text, twice at most."""
    counted: list[int] = []

    class Counting(Tokenizer):
        def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
            counted.append(len(token_ids))
            return super().decode(token_ids, special=special)

    tokenizer = Counting(pieces_definition())
    assert streamed(tokenizer, [1 + 0x80] * 2000).startswith("\ufffd" * 1990)
    assert sum(counted) < 2000 * 50


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.sampled_from([[BLANK], [HELLO], [LETTER], [END]])
        | st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd").map(spelt)
    ),
    special=st.booleans(),
)
def test_streaming_pieces_and_bytes_equals_decoding(
    pieces_tokenizer: Tokenizer, parts: list[list[int]], special: bool
) -> None:
    token_ids = [token for part in parts for token in part]
    whole = pieces_tokenizer.decode(token_ids, special=special)
    assert streamed(pieces_tokenizer, token_ids, special=special) == whole


@pytest.mark.model
def test_gguf_tokenizer_is_the_published_one(smollm2: Path, model_cache: Path) -> None:
    """Against transformers' own conversion of the same file, which knows no cut but GPT-2's.

    The published tokenizer takes digits apart first, as ours does; it shows behind several blanks.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = load_model(smollm2, cache_dir=model_cache, dtype="float32").tokenizer
    for text in SPECIMENS:
        expected = tuple(theirs(text, add_special_tokens=False)["input_ids"])
        assert ours.encode(text) == expected, text
        assert ours.decode(ours.encode(text)) == text
    assert [ours.token_text(i) for i in ours.encode("a   1")] == ["a", "   ", "1"]
    assert ours.token_text(2) == "<|im_end|>"
    assert ours.eos_ids == (2,)
    assert ours.vocab_size == 49152


@pytest.mark.model
def test_streaming_real_tokens_equals_decoding(smollm2: Path, model_cache: Path) -> None:
    import torch

    folder = unpack_gguf(smollm2, model_cache / "unpacked", torch.float32)
    tokenizer, _ = load_tokenizer(folder)
    for text in SPECIMENS:
        stream = tokenizer.detokenizer()
        pieces = [stream.push(token) for token in tokenizer.encode(text)]
        assert "".join(pieces) + stream.flush() == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_name_of_bos_may_have_any_characters(tmp_path: Path) -> None:
    name = "<\uff5cbegin\u2581here\uff5c>"
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, name: 1}, []))
    made.add_special_tokens([name])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, 1)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": name}))
    assert load_tokenizer(tmp_path)[0].bos_ids == (1,)


def test_a_folder_without_tokenizer_is_refused(
    tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    folder = tiny_model("llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer\.json"):
        load_model(folder, cache_dir=model_cache)


def test_a_torn_tokenizer_is_refused(tiny_model: Callable[..., Path], model_cache: Path) -> None:
    folder = tiny_model("llama")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(WeightsError, match="is no tokenizer"):
        load_model(folder, cache_dir=model_cache)
