"""Signed files: equal contents are equal bytes, in whatever order they were given; older files stay readable."""

import itertools
import json

import pytest
import safetensors
import torch
from torch import nn

from qdtune import reader
from qdtune.model import packed, quantize
from qdtune.model.formats.packed import one_seed
from qdtune.model.signed_file import find_fault, sign_file, split_file
from qdtune.training.training_log import TrainingLog
from qdtune.training.warmups import pack_warmup

HEADER = {
    "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    "a": {"shape": [2], "data_offsets": [1, 3], "dtype": "U8"},
    "__metadata__": {"z": "1", "y": "2"},
}


def networks(seeds=(0, 1)):
    """The same small network per seed, whenever it is made: quantised, with a batch normalisation."""
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
            quantize.quantize(model, 3, 4)
            quantize.calibrate(model, torch.rand(8, 3))
            yield seed, model


def as_before(blob):
    """The file as older versions wrote it: the keys of its header in another order, the checksum the same."""
    header, data = split_file(blob)
    metadata = header.pop("__metadata__")
    turned = {**dict(reversed(header.items())), "__metadata__": dict(reversed(metadata.items()))}
    text = json.dumps(turned).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def test_any_order_of_the_header_gives_the_same_bytes():
    signed = {
        sign_file({key: dict(reversed(value.items())) if turned else value for key, value in order}, b"abc")
        for order in itertools.permutations(HEADER.items())
        for turned in (False, True)
    }
    assert len(signed) == 1
    (blob,) = signed
    assert sign_file(*split_file(blob)) == blob
    keys = json.JSONDecoder(object_pairs_hook=lambda pairs: [key for key, _ in pairs]).decode(blob[8:-3].decode())
    assert keys == ["__metadata__", "a", "b"]
    assert {name: entry["data"] for name, entry in safetensors.deserialize(blob)} == {"b": b"a", "a": b"bc"}


def test_equal_trainings_give_equal_weights_and_exports():
    """Several times, because safetensors draws the order of its metadata anew each time."""
    made = {packed.pack_replicas(dict(networks(order)), "t", 3, 2) for order in ((0, 1), (1, 0)) * 4}
    assert len(made) == 1
    (blob,) = made
    assert one_seed(blob, 1) == one_seed(as_before(blob), 1)
    assert one_seed(blob, 1) != one_seed(blob, 0)


def test_equal_warmups_give_equal_files():
    def log():
        made = TrainingLog((0, 1))
        made.add("warmup", 1, [0.5, 0.25], [0.1, 0.2], 1.0)
        return made

    assert len({pack_warmup([model for _, model in networks()], log()) for _ in range(8)}) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_file_with_an_unsorted_header_still_verifies_and_reads(seed):
    blob = one_seed(packed.pack_replicas(dict(networks()), "t", 3, 2), seed)
    older = as_before(blob)
    assert older != blob
    assert find_fault(older, older=False) is None
    assert reader.load(older).program == reader.load(blob).program
    assert sign_file(*split_file(older)) == blob
    assert "do not fit" in str(find_fault(older[:-1] + bytes([older[-1] ^ 1]), older=False))
