import pytest

from qdtune.store.warmups import WarmupFolder


def test_first_claim_trains_and_others_wait_until_it_is_kept(tmp_path):
    folder = WarmupFolder(str(tmp_path / "warmup"))
    assert folder.claim("a1", "x") == ("train", None)
    assert folder.claim("a1", "y") == ("wait", None)
    assert folder.claim("a1", "x") == ("train", None)  # the same trial again, after a lost worker
    assert folder.claim("b2", "y") == ("train", None)
    folder.keep("a1", b"weights")
    assert folder.claim("a1", "y") == ("kept", b"weights")
    assert WarmupFolder(str(tmp_path / "warmup")).claim("a1", "z") == ("kept", b"weights")
    assert [p.name for p in (tmp_path / "warmup").iterdir()] == ["a1.safetensors"]


def test_release_passes_the_training_on(tmp_path):
    folder = WarmupFolder(str(tmp_path))
    folder.claim("a1", "x")
    folder.claim("b2", "z")
    folder.release("x")
    assert folder.claim("a1", "y") == ("train", None)
    assert folder.claim("b2", "y") == ("wait", None)


def test_a_warmup_kept_again_sets_the_damaged_one_aside(tmp_path):
    folder = WarmupFolder(str(tmp_path))
    folder.keep("a1", b"damaged")
    folder.keep("a1", b"weights")
    assert folder.claim("a1", "x") == ("kept", b"weights")
    assert (tmp_path / "a1.safetensors.damaged").read_bytes() == b"damaged"


def test_keys_cannot_leave_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"letters and digits, got '../x'"):
        WarmupFolder(str(tmp_path)).claim("../x", "x")
