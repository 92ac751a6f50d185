"""Keys of blocks: equal for equal KV, different for everything that KV depends on."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import (
    EXACT,
    BlockId,
    Cause,
    ChainHash,
    Fingerprint,
    KvShape,
    Recipe,
    chain_hash,
    chain_hashes,
)

BLOCK = BlockId(Fingerprint("f"), EXACT, "tenant", chain_hash([7, 8]), 2, (1, 2, 3))
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def test_a_key_is_the_same_in_every_process_and_release() -> None:
    """Written down once: stored blocks are found by these digests for ever."""
    assert BLOCK.key == "cdfa4f1493e45c13c9c1b5103fff652b234c542a893641d195162c7e173966c5"
    assert BLOCK.content_id == "b9d79e3983e9539e650a01d0074eb7771954160bff835cab17e8870dbe1942aa"


@pytest.mark.parametrize(
    "other",
    [
        replace(BLOCK, fingerprint=Fingerprint("g")),
        replace(BLOCK, recipe=Recipe((Cause.CODEC,), "int8")),
        replace(BLOCK, salt="another"),
        replace(BLOCK, after=chain_hash([7, 9])),
        replace(BLOCK, token_ids=(1, 2, 4)),
    ],
)
def test_whatever_kv_depends_on_is_in_the_key(other: BlockId) -> None:
    assert other.key != BLOCK.key


def test_a_content_id_depends_on_the_tenant_and_the_text_alone() -> None:
    elsewhere = replace(BLOCK, after=ChainHash(""), start=99, fingerprint=Fingerprint("g"))
    assert elsewhere.content_id == BLOCK.content_id
    assert replace(BLOCK, salt="another").content_id != BLOCK.content_id


def test_parts_of_a_key_cannot_run_together() -> None:
    """`ab` and `c` hash otherwise than `a` and `bc`."""
    one = replace(BLOCK, fingerprint=Fingerprint("ab"), salt="c")
    other = replace(BLOCK, fingerprint=Fingerprint("a"), salt="bc")
    assert one.key != other.key


@pytest.mark.parametrize("salt", ["", "\x00", "é\u202e", "a/b\n", "x" * 5000])
def test_any_salt_makes_a_key(salt: str) -> None:
    assert len(replace(BLOCK, salt=salt).key) == 64


@given(TOKENS, st.lists(st.integers(0, 40), max_size=5).map(sorted))
def test_chain_hashes_in_one_pass_are_those_of_each_prefix(
    tokens: list[int], cuts: list[int]
) -> None:
    assert chain_hashes(tokens, cuts) == [chain_hash(tokens[:cut]) for cut in cuts]


def test_a_chain_hash_is_sha256_over_little_endian_words() -> None:
    assert chain_hash([1, 2]) == hashlib.sha256(struct.pack("<2I", 1, 2)).hexdigest()
    with pytest.raises(ValueError, match="cuts must ascend: 1 after 2"):
        chain_hashes([1, 2, 3], [2, 1])


def test_any_cause_taints_and_recipes_are_named_by_their_causes() -> None:
    lossy_blend = Recipe((Cause.BLEND, Cause.CODEC), "int8")
    assert (EXACT.name, EXACT.tainted) == ("exact", False)
    assert (lossy_blend.name, lossy_blend.tainted) == ("blend+codec:int8", True)


def test_bytes_of_a_token_are_k_and_v_of_every_head_and_layer() -> None:
    """2 x 3 heads x 4 values x 2 bytes = 48 a layer, five layers; twice in fp32."""
    shape = KvShape(num_layers=5, num_kv_heads=3, head_dim=4, dtype="bfloat16")
    assert (shape.layer_token_bytes, shape.token_bytes) == (48, 240)
    assert replace(shape, dtype="float32").token_bytes == 480
