import pytest

from trainers.seals import BrokenSealError, opened, sealed

ENTRY = {"version": 3, "reason": "better", "score": float("inf"), "nested": {"a": [1, None]}}


def test_what_was_sealed_is_opened() -> None:
    assert opened(sealed(ENTRY, "here"), "here") == ENTRY


def test_every_flipped_bit_breaks_the_seal() -> None:
    content = sealed(ENTRY, "here")
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BrokenSealError):
            opened(bytes(flipped), "here")


def test_an_entry_that_was_copied_elsewhere_is_refused() -> None:
    with pytest.raises(BrokenSealError, match="not what was written there"):
        opened(sealed(ENTRY, "here"), "there")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version": 1}', b"\xff", b"null"])
def test_what_was_never_sealed_is_refused(content: bytes) -> None:
    with pytest.raises(BrokenSealError):
        opened(content, "here")
