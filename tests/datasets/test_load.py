"""Data sets: what is handed out, what is refused, and that nobody touches the network without need."""

from __future__ import annotations

import gzip
import hashlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdtune.datasets import cifar, digits, known, load
from qdtune.datasets.dataset import DataFile

TRAIN, TEST = 60, 20  # rows of the small idx sets written here
FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
ARRAYS = ["train_x", "train_y", "val_x", "val_y", "test_x", "test_y"]


def idx(array: np.ndarray) -> bytes:
    """The bytes of an idx file that holds `array`."""
    return struct.pack(f">{1 + array.ndim}i", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def offline(*_: Any, **__: Any) -> NoReturn:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look-up of a host fails as it does on a machine without network."""
    monkeypatch.setattr(socket, "getaddrinfo", offline)


@pytest.fixture
def network_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to use the network fails the test: nothing in `load` catches an AssertionError."""

    def touched(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("the network was touched")

    for call in ("getaddrinfo", "create_connection", "socket"):
        monkeypatch.setattr(socket, call, touched)


def change(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Changes what is known of a data set."""
    changed = [replace(one, **changes) if one.name == name else one for one in known.DATASETS]
    monkeypatch.setattr(known, "DATASETS", tuple(changed))


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Contents of a small idx set, by file; `load` is told to expect its sizes."""
    for name in ("mnist", "kmnist"):
        change(monkeypatch, name, train=TRAIN, test=TEST)
    random = np.random.RandomState(3)
    return {
        file: random.randint(0, 256, (rows, 28, 28), np.uint8)
        if "images" in file
        else random.randint(0, 10, rows, np.uint8)
        for file, rows in zip(FILES, [TRAIN, TRAIN, TEST, TEST], strict=True)
    }


@pytest.fixture
def small(tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a small set in the place of KMNIST (no known sums) and of MNIST (sums made to fit)."""
    for folder in ("KMNIST/raw", "MNIST/raw"):
        (tmp_path / folder).mkdir(parents=True)
        for file, array in arrays.items():
            (tmp_path / folder / file).write_bytes(idx(array))
    sums = (hashlib.md5(idx(arrays[file])).hexdigest() for file in FILES)
    files = tuple(DataFile(f"MNIST/raw/{file}", md5) for file, md5 in zip(FILES, sums, strict=True))
    change(monkeypatch, "mnist", files=files)
    return tmp_path


def equal(a: load.Samples, b: load.Samples) -> bool:
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in ARRAYS)


def assert_sound(found: load.Samples, train: int, val: int, test: int) -> None:
    for split, rows in (("train", train), ("val", val), ("test", test)):
        x, y = getattr(found, f"{split}_x"), getattr(found, f"{split}_y")
        assert x.shape == (rows, found.inputs)
        assert y.shape == (rows,)
        assert (x.dtype, y.dtype) == (np.uint8, np.int64)
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        assert x.max() > 200  # stretched over the whole byte
        assert set(np.unique(y)) == set(range(found.classes))


# --- what is handed out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "test"), [("digits", 360), ("synthetic", 256)])
def test_builtin_sets_have_their_shapes(name: str, test: int, tmp_path: Path, network_forbidden: None) -> None:
    found, notes = load.load([name], tmp_path, 100)
    info = known.dataset_of(name)
    assert notes == []
    assert (found.name, found.inputs, found.classes) == (name, info.inputs, info.classes)
    assert_sound(found, info.train - 100, 100, test)


@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion_mnist", 0.2860)])
def test_real_sets_are_read_whole(name: str, mean: float, data_dir: Path, network_forbidden: None) -> None:
    assert load.on_disk(name, data_dir)
    found, notes = load.load([name, "digits"], data_dir, 5000)
    assert (found.name, notes) == (name, [])
    assert_sound(found, 55_000, 5000, 10_000)
    pixels = np.concatenate([found.train_x, found.val_x])
    assert pixels.mean() / 255 == pytest.approx(mean, abs=1e-4)  # the published mean of the training set


def test_digits_are_rounded_to_the_whole_byte(tmp_path: Path) -> None:
    found, _ = load.load(["digits"], tmp_path, 1)
    levels = {round(level * 255 / 16) for level in range(17)}
    assert set(np.unique(found.train_x)) == levels


@pytest.mark.parametrize("package", ["sklearn", "json"])  # as if its file were elsewhere: the other way
def test_digits_are_those_of_scikit_learn(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    from sklearn.datasets import load_digits

    monkeypatch.setattr(digits, "find_spec", lambda name: find_spec(package))
    x, y = load_digits(return_X_y=True)
    assert np.array_equal(digits._table(), np.column_stack([x, y]))


def test_digits_are_read_without_what_takes_a_second_to_import() -> None:
    code = """
import sys
from qdtune.datasets.load import load
load(["digits"], "nowhere", 200)
print({"sklearn", "pandas", "scipy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_idx_set_holds_the_rows_of_its_files(
    small: Path, arrays: dict[str, np.ndarray], network_forbidden: None
) -> None:
    found, _ = load.load(["kmnist"], small, 7)
    x, y = np.concatenate([found.train_x, found.val_x]), np.concatenate([found.train_y, found.val_y])
    images, labels = arrays[FILES[0]], arrays[FILES[1]]
    assert {row.tobytes(): label for row, label in zip(x, y, strict=True)} == {
        image.tobytes(): label for image, label in zip(images, labels, strict=True)
    }
    assert np.array_equal(found.test_x.reshape(-1, 28, 28), arrays[FILES[2]])
    assert np.array_equal(found.test_y, arrays[FILES[3]])


def test_cifar10_rows_are_channel_by_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    random = np.random.RandomState(5)
    images, labels = random.randint(0, 256, (6, 32, 32, 3), np.uint8), [3, 1, 4, 1, 5, 9]

    class Stub:
        data, targets = images, labels

    monkeypatch.setattr(cifar, "check_file", lambda dataset, file, root: None)
    monkeypatch.setattr(datasets, "CIFAR10", lambda root, train: Stub)
    _, _, x, y = cifar.CIFAR10.read(cifar.CIFAR10, tmp_path)
    assert (x.dtype, y.dtype) == (np.uint8, np.int64)
    assert np.array_equal(x[2].reshape(3, 32, 32)[1], images[2, :, :, 1])
    assert list(y) == labels


def test_synthetic_is_learnt_by_a_small_network(tmp_path: Path) -> None:
    found, _ = load.load(["synthetic"], tmp_path, 64)
    x, y, test_x, test_y = (torch.from_numpy(a) for a in (found.train_x, found.train_y, found.test_x, found.test_y))
    generator = torch.Generator().manual_seed(0)
    w1 = (torch.randn(16, 8, generator=generator) / 4).requires_grad_()
    w2 = (torch.randn(8, 4, generator=generator) / 3).requires_grad_()

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        return torch.relu((pixels / 255 - 0.5) / 0.5 @ w1) @ w2

    optimiser = torch.optim.SGD([w1, w2], lr=0.5)
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits(x), y).backward()
        optimiser.step()
    assert (logits(test_x).argmax(1) == test_y).float().mean() > 0.9


# --- the split --------------------------------------------------------------------------------------------------


def test_split_is_the_same_every_time(tmp_path: Path) -> None:
    np.random.seed(7)
    first, _ = load.load(["digits"], tmp_path, 200)
    np.random.seed(8)  # the global generator has no say
    second, _ = load.load(["digits"], tmp_path, 200)
    assert equal(first, second)


def test_split_is_frozen(tmp_path: Path) -> None:
    found, _ = load.load(["digits"], tmp_path, 200)
    digest = hashlib.md5(b"".join(getattr(found, key).tobytes() for key in ARRAYS)).hexdigest()
    assert digest == "d43214796254734d9eafcb92b3eb599e", (
        "the split changed: results of older runs can no longer be compared"
    )


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(2, 300), share=st.floats(0, 1))
def test_split_is_disjoint_and_whole(rows: int, share: float) -> None:
    val_size = 1 + round(share * (rows - 2))
    ids = np.arange(rows)
    found = load.cut("synthetic", (ids[:, None], ids, ids[:1, None], ids[:1]), val_size)
    assert len(found.val_y) == val_size
    assert sorted([*found.train_y, *found.val_y]) == list(ids)
    assert np.array_equal(found.train_x[:, 0], found.train_y)
    assert np.array_equal(found.val_x[:, 0], found.val_y)


def test_validation_is_drawn_from_all_over_the_training_set() -> None:
    ids = np.arange(1000)
    val = load.cut("synthetic", (ids[:, None], ids, ids[:1, None], ids[:1]), 100).val_y
    assert np.histogram(val, bins=4, range=(0, 1000))[0].min() > 10


@pytest.mark.parametrize("val_size", [-1, 0, 512, 5000])
def test_val_size_out_of_range_is_refused(val_size: int, tmp_path: Path) -> None:
    with pytest.raises(load.DataError, match=f"val_size must be 1 to 511 for synthetic, got {val_size}"):
        load.load(["synthetic"], tmp_path, val_size)


def test_val_size_may_depend_on_the_set(tmp_path: Path) -> None:
    found, _ = load.load(["synthetic"], tmp_path, lambda name: {"synthetic": 17}[name])
    assert len(found.val_x) == 17


# --- what cannot be had -----------------------------------------------------------------------------------------


def test_fallback_is_loud(tmp_path: Path, no_network: None) -> None:
    found, notes = load.load(["mnist", "cifar10", "digits"], tmp_path, 100)
    assert found.name == "digits"
    (note,) = notes
    assert note.count("name resolution") == 2  # the cause, not what torchvision wraps around it
    for part in ("mnist could not be had", "cifar10 could not be had", f"not in {tmp_path}"):
        assert part in note
    assert note.endswith(": training on digits instead")


def test_fallback_is_not_used_where_the_first_can_be_had(small: Path, network_forbidden: None) -> None:
    found, notes = load.load(["kmnist", "digits"], small, 7)
    assert (found.name, notes) == ("kmnist", [])


def test_no_set_at_all_names_folder_and_way_out(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(load.DataError, match="QDTUNE_DATA") as caught:
        load.load(["mnist", "kmnist"], tmp_path, 100)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("mnist could not", "kmnist could not", str(tmp_path), "--data-dir"):
        assert part in message


def test_unknown_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(load.DataError, match=r"dataset must be one of mnist, .*, got 'minst'"):
        load.load(["minst", "digits"], tmp_path, 100)


def test_root_that_is_a_file_is_no_traceback(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "data").write_text("")
    found, notes = load.load(["mnist", "digits"], tmp_path / "data", 100)
    assert found.name == "digits"
    assert "mnist could not be had" in notes[0]


def test_failed_download_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []

    def noted(*_: Any, **__: Any) -> NoReturn:
        timeouts.append(socket.getdefaulttimeout())
        offline()

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    load.load(["mnist", "digits"], tmp_path / "no" / "folder", 100)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert set(timeouts) == {20.0}
    assert socket.getdefaulttimeout() is None


# --- files that are there ---------------------------------------------------------------------------------------


def cut(content: bytes) -> bytes:
    return content[:-1]


def flip(content: bytes) -> bytes:
    return content[:20] + bytes([content[20] ^ 1]) + content[21:]


def wrong_magic(content: bytes) -> bytes:
    return b"\0\0\x09" + content[3:]


def other_dims(content: bytes) -> bytes:  # as many bytes, shared out differently
    return content[:4] + struct.pack(">i", TRAIN // 2) + content[8:]


FAULTS: list[tuple[Callable[[bytes], bytes], str]] = [
    (cut, "must have .* bytes, found"),
    (flip, "md5 must be"),
    (wrong_magic, "must start with the bytes 0000080"),
    (other_dims, "by its header"),
    (gzip.compress, "must start with the bytes 0000080., found 1f8b"),
    (lambda content: b"", "found nothing"),
    (lambda content: content[:6], "must have .* bytes, found 6"),
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_damaged_file_is_refused(
    file: str, fault: Callable[[bytes], bytes], message: str, small: Path, network_forbidden: None
) -> None:
    path = small / "MNIST/raw" / file
    path.write_bytes(fault(path.read_bytes()))
    with pytest.raises(load.DataError, match=message) as caught:
        load.load(["mnist", "digits"], small, 7)
    for part in (str(path), "delete it", "--data-dir"):
        assert part in str(caught.value)


def test_damaged_file_beside_a_missing_one_is_refused(small: Path, network_forbidden: None) -> None:
    (small / "MNIST/raw" / FILES[0]).unlink()
    path = small / "MNIST/raw" / FILES[3]
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(load.DataError, match=f"{FILES[3]} is damaged"):
        load.load(["mnist", "digits"], small, 7)


def test_label_out_of_range_is_refused_where_no_sum_is_known(small: Path) -> None:
    path = small / "KMNIST/raw" / FILES[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(load.DataError, match="labels must be below 10, found 10"):
        load.load(["kmnist"], small, 7)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(small: Path, file: str, where: float, bit: int) -> None:
    content = bytearray((small / "MNIST/raw" / file).read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    mnist = known.dataset_of("mnist")
    (known_file,) = [one for one in mnist.files if one.path.endswith(file)]
    assert mnist.find_fault(mnist, known_file, bytes(content)) is not None


def test_damaged_cifar_batch_is_refused_before_it_is_unpickled(tmp_path: Path, network_forbidden: None) -> None:
    for file in known.dataset_of("cifar10").files:
        path = tmp_path / file.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no batch")
    with pytest.raises(load.DataError, match="data_batch_1 is damaged: its md5 must be"):
        load.load(["cifar10", "digits"], tmp_path, 7)


def test_unreadable_file_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(load.DataError, match=r"cannot be read \(Permission denied\)"):
        load.load(["mnist", "digits"], small, 7)


def test_on_disk_wants_every_file(small: Path) -> None:
    assert load.on_disk("kmnist", small)
    (small / "KMNIST/raw" / FILES[3]).unlink()
    assert not load.on_disk("kmnist", small)
    assert not load.on_disk("cifar10", small)
    assert load.on_disk("digits", small / "nowhere")


# --- archives and downloads -------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small KMNIST as torchvision's archives, whose sums torchvision is told."""
    from torchvision.datasets import KMNIST

    folder = tmp_path / "packed"
    folder.mkdir()
    for file, array in arrays.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
    sums = [(f"{file}.gz", hashlib.md5((folder / f"{file}.gz").read_bytes()).hexdigest()) for file in FILES]
    monkeypatch.setattr(KMNIST, "resources", sums)
    return folder


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mirror(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder `packed`, served on the loopback device as the one place torchvision downloads KMNIST from."""
    from torchvision.datasets import KMNIST

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(packed))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(KMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setenv("no_proxy", "*")
        yield packed
        server.shutdown()
        thread.join()


def test_download_puts_the_missing_files_only(
    mirror: Path, tmp_path: Path, arrays: dict[str, np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "root"
    kept = root / "KMNIST/raw" / FILES[0]
    kept.parent.mkdir(parents=True)
    other = np.roll(arrays[FILES[0]], 1)
    kept.write_bytes(idx(other))
    found, notes = load.load(["kmnist", "digits"], root, 7)
    assert (found.name, notes) == ("kmnist", [])
    assert kept.read_bytes() == idx(other)
    assert {path.name for path in root.rglob("*") if path.is_file()} == set(FILES)
    assert capfd.readouterr() == ("", "")
    assert load.on_disk("kmnist", root)


def test_archives_on_disk_are_unpacked_without_network(packed: Path, tmp_path: Path, network_forbidden: None) -> None:
    root = tmp_path / "root"
    (root / "KMNIST").mkdir(parents=True)
    packed.rename(root / "KMNIST/raw")
    found, notes = load.load(["kmnist", "digits"], root, 7)
    assert (found.name, notes) == ("kmnist", [])


def test_garbage_archive_is_refused_and_kept(packed: Path, tmp_path: Path, network_forbidden: None) -> None:
    root = tmp_path / "root"
    path = root / "KMNIST/raw" / f"{FILES[1]}.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x1f\x8bgarbage")
    with pytest.raises(load.DataError, match="delete it") as caught:
        load.load(["kmnist", "digits"], root, 7)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"\x1f\x8bgarbage"


def test_download_cut_short_falls_back(mirror: Path, tmp_path: Path) -> None:
    path = mirror / f"{FILES[2]}.gz"
    path.write_bytes(path.read_bytes()[:-1])
    _, notes = load.load(["kmnist", "digits"], tmp_path / "root", 7)
    assert "kmnist could not be had" in notes[0]
    assert not (tmp_path / "root").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_answer_that_is_no_http_falls_back(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Silent, "do_GET", lambda self: self.wfile.write(b"welcome to the hotel\r\n"))
    found, notes = load.load(["kmnist", "digits"], tmp_path, 7)
    assert found.name == "digits"
    assert "download failed: welcome to the hotel" in notes[0]


# --- the rest ---------------------------------------------------------------------------------------------------


def test_default_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDTUNE_DATA", "elsewhere")
    assert load.default_root() == Path("elsewhere")
    monkeypatch.delenv("QDTUNE_DATA")
    assert load.default_root() == Path("data")
