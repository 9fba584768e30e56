"""Data: known values, layouts, splits, sample choice, and every way in which data can be wrong."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from specdiag.errors import DataError
from specdiag.loading.datasets import load_data
from specdiag.sampling import Draws, choose


def npz(folder: Path, **arrays: np.ndarray) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def fails(spec: str, *words: str, **options) -> None:
    with pytest.raises(DataError) as caught:
        load_data(spec, **options)
    assert caught.value.exit_code == 2
    assert caught.value.todo
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_digits_are_the_set_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    train, test = (load_data("digits", split=split, samples=None) for split in ("train", "test"))
    assert (train.x.shape, test.x.shape) == ((1400, 1, 8, 8), (397, 1, 8, 8))
    assert train.x.dtype == np.float32
    assert train.y.dtype == np.int64
    rows = {
        (row.tobytes(), int(label))
        for data in (train, test)
        for row, label in zip(data.x, data.y, strict=True)
    }
    expected = {
        ((row / 16).astype(np.float32).tobytes(), int(label))
        for row, label in zip(images, labels, strict=True)
    }
    assert rows == expected
    assert (test.low, test.high, test.classes, test.total) == (0.0, 1.0, 10, 397)
    # the split is written once: other seeds choose other samples from the same split
    assert load_data("digits", seed=5, samples=None).sha256 == test.sha256
    assert test.sha256.startswith("ede6cff7f7245e14")


def test_samples_are_those_of_choose_and_smaller_is_a_subset() -> None:
    whole = load_data("digits", samples=None)
    some, fewer = load_data("digits", samples=50, seed=3), load_data("digits", samples=7, seed=3)
    assert np.array_equal(some.index, choose(397, 50, 3))
    assert np.array_equal(some.x, whole.x[some.index])
    assert np.array_equal(some.y, whole.y[some.index])
    assert set(fewer.index) < set(some.index)
    assert list(some.index) == sorted(some.index)
    assert not np.array_equal(load_data("digits", samples=50, seed=4).index, some.index)


@settings(max_examples=50, deadline=None)
@given(
    total=st.integers(1, 300), small=st.integers(1, 300), more=st.integers(0, 300), seed=st.integers(0, 2**31)
)
def test_choose_nests_and_covers(total: int, small: int, more: int, seed: int) -> None:
    first, second = choose(total, small, seed), choose(total, small + more, seed)
    assert set(first) <= set(second)
    assert len(first) == min(small, total)
    assert len(set(first)) == len(first)
    assert list(choose(total, total, seed)) == list(range(total))


def test_too_many_samples_take_all_and_say_so() -> None:
    data = load_data("digits", samples=1000)
    assert len(data) == 397
    assert "397" in data.notes[0]
    assert load_data("digits", samples=397).notes == ()


def test_random_data_do_not_depend_on_how_many() -> None:
    data = load_data("random", samples=9, seed=2, input_shape=(3, 4, 5))
    assert data.x.shape == (9, 3, 4, 5)
    assert data.y is None
    assert np.array_equal(data.x[:4], load_data("random", samples=4, seed=2, input_shape=(3, 4, 5)).x)
    expected = Draws(2).generator("data/random", 3).random((3, 4, 5)).astype(np.float32)
    assert np.array_equal(data.x[3], expected)
    assert not np.array_equal(data.x, load_data("random", samples=9, seed=3, input_shape=(3, 4, 5)).x)
    fails("random", "shape of an input")


def test_hash_is_that_of_the_samples(tmp_path: Path) -> None:
    x, y = np.linspace(0, 1, 2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5), np.array([1, 0])
    data = load_data(npz(tmp_path, x=x, y=y))
    digest = hashlib.sha256(b"<f4(2, 3, 4, 5)" + x.tobytes() + b"<i8(2,)" + y.astype("<i8").tobytes())
    assert data.sha256 == digest.hexdigest()
    assert load_data(npz(tmp_path, x=x, y=y[::-1])).sha256 != data.sha256


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "float16"])
@pytest.mark.parametrize("last", [False, True])
def test_npz_layouts_and_types_give_the_same_images(tmp_path: Path, kind: str, last: bool) -> None:
    x = PIXELS.transpose(0, 2, 3, 1) if last else PIXELS
    x = x if kind == "uint8" else (x / 255).astype(kind)
    data = load_data(npz(tmp_path, x=x, y=np.arange(6)))
    assert data.x.shape == (6, 3, 8, 8)
    assert data.x.dtype == np.float32
    assert data.x.flags.c_contiguous
    tolerance = 1e-3 if kind == "float16" else 1e-7
    assert np.abs(data.x - PIXELS / 255).max() <= tolerance
    assert data.classes == 6


def test_one_image_by_hand(tmp_path: Path) -> None:
    x = np.zeros((1, 2, 5, 3), np.uint8)
    x[0, 1, 4] = [0, 51, 255]
    data = load_data(npz(tmp_path, x=x))
    assert data.x.shape == (1, 3, 2, 5)
    assert data.x[0, :, 1, 4].tolist() == pytest.approx([0, 0.2, 1])
    assert data.y is None
    assert data.classes is None


def test_both_layouts_possible(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((2, 3, 6, 3)).astype(np.float32)
    spec = npz(tmp_path, x=x)
    fails(spec, "--layout nchw")
    assert np.array_equal(load_data(spec, layout="nchw").x, x)
    assert np.array_equal(load_data(spec, layout="nhwc").x, x.transpose(0, 3, 1, 2))
    assert load_data(spec, input_shape=(3, 6, 3)).x.shape == (2, 3, 6, 3)
    assert load_data(spec, input_shape=(3, 3, 6)).x.shape == (2, 3, 3, 6)
    fails(spec, "There is no layout", layout="chw")
    cube = npz(tmp_path, x=np.random.default_rng(0).random((2, 3, 3, 3)).astype(np.float32))
    fails(cube, "--layout", input_shape=(3, 3, 3))


def test_neither_layout_possible(tmp_path: Path) -> None:
    spec = npz(tmp_path, x=np.zeros((2, 7, 6, 5), np.float32))
    fails(spec, "--layout")
    assert load_data(spec, input_shape=(7, 6, 5)).x.shape == (2, 7, 6, 5)
    assert load_data(spec, input_shape=(5, 7, 6)).x.shape == (2, 5, 7, 6)


def test_grey_images_without_a_channel_axis(tmp_path: Path) -> None:
    spec = npz(tmp_path, x=np.zeros((2, 28, 28), np.uint8), y=np.array([[3], [1]]))
    data = load_data(spec)
    assert data.x.shape == (2, 1, 28, 28)
    assert data.y.tolist() == [3, 1]
    assert load_data(spec, input_shape=(28, 28)).x.shape == (2, 28, 28)


def test_features_have_no_range(tmp_path: Path) -> None:
    x = np.array([[-300.0, 5], [1e4, 2], [0, 0]])
    data = load_data(npz(tmp_path, x=x, y=np.array([0.0, 1.0, 2.0])))
    assert np.array_equal(data.x, x.astype(np.float32))
    assert (data.low, data.high) == (-np.inf, np.inf)
    assert data.y.tolist() == [0, 1, 2]
    assert load_data(npz(tmp_path, x=np.array([[0, 255]], np.uint8))).x.tolist() == [[0, 255]]


def test_splits(tmp_path: Path) -> None:
    x, y = PIXELS, np.arange(6)
    both = npz(tmp_path, x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    assert load_data(both, split="train").y.tolist() == [0, 1, 2, 3]
    assert load_data(both).y.tolist() == [4, 5]
    single = npz(tmp_path, x=x, y=y)
    assert len(load_data(single)) == 6
    fails(single, "no train split", "--split test", split="train")
    fails(npz(tmp_path, x_train=x), "no test split", "--split train")
    mixed = npz(tmp_path, x=x, y=y, x_train=x[:2], y_train=y[:2])
    assert len(load_data(mixed, split="train")) == 2
    fails(both, "There is no split 'tst'", "Did you mean test", split="tst")


def test_values_outside_the_range_name_the_cause(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fails(npz(tmp_path, x=rng.normal(size=(4, 3, 8, 8))), "normalised already", "--mean")
    fails(npz(tmp_path, x=PIXELS.astype(np.float32)), "0 to 255", "uint8")
    fails(npz(tmp_path, x=PIXELS.astype(np.int64)), "0 to 255")
    x = np.full((4, 1, 5, 5), 0.5)
    x[2, 0, 1, 1] = 1.01
    fails(npz(tmp_path, x=x), "first in sample 2")
    x[2, 0, 1, 1] = 1 + 1e-7
    assert load_data(npz(tmp_path, x=x)).x.max() == 1


def test_nan_names_the_sample(tmp_path: Path) -> None:
    x = np.full((30, 1, 5, 5), 0.5)
    x[17, 0, 0, 0] = np.nan
    fails(npz(tmp_path, x=x), "sample 17 holds NaN", samples=None)
    x[17, 0, 0, 0] = np.inf
    fails(npz(tmp_path, x=x), "sample 17 holds an infinite value", samples=None)
    features = np.ones((3, 2))
    features[1, 1] = np.nan
    fails(npz(tmp_path, x=features), "sample 1 holds NaN")


def test_labels_that_are_none(tmp_path: Path) -> None:
    x = np.zeros((3, 2))
    for y in (np.array([0.5, 1, 2]), np.eye(3)):
        data = load_data(npz(tmp_path, x=x, y=y))
        assert data.y is None
        assert "taken as no labels" in data.notes[0]
    fails(npz(tmp_path, x=x, y=np.arange(4)), "3 samples but 4 labels")
    fails(npz(tmp_path, x=x, y=np.array([0, -1, 2])), "sample 1 has the label -1")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickled_arrays_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    array = np.empty(1, object)
    array[0] = Payload(marker)
    np.savez(tmp_path / "data.npz", x=array, allow_pickle=True)
    fails(str(tmp_path / "data.npz"), "Python objects")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Payload(marker)))
    fails(str(tmp_path / "raw.npz"), "cannot be read")
    assert not marker.exists()


def test_broken_and_missing_files(tmp_path: Path) -> None:
    fails(str(tmp_path / "none.npz"), "There is no file")
    spec = npz(tmp_path, x=np.zeros((300, 3)))
    fails(str(tmp_path / "dat.npz"), "In that folder: data.npz")
    content = Path(spec).read_bytes()
    for broken in (content[: len(content) // 2], b"", b"hello", content[:900] + b"\x55" + content[901:]):
        Path(spec).write_bytes(broken)
        fails(spec, "cannot be read")
    fails(npz(tmp_path, images=np.zeros((2, 3))), "no array 'x'", "images")
    fails(npz(tmp_path, x=np.zeros(3)), "shape (3,)")
    fails(npz(tmp_path, x=np.array(["a", "b"])[:, None]), "not numbers")
    fails(npz(tmp_path, x=np.zeros((0, 3))), "no samples")
    np.save(tmp_path / "one.npy", np.zeros((2, 2)))
    fails(str(tmp_path / "one.npy"), "unnamed array")


def test_specs_that_cannot_be_meant(tmp_path: Path) -> None:
    fails("digts", "Did you mean digits")
    fails("cifar10", "cifar10:FOLDER")
    fails("cifar10:", "cifar10:FOLDER")
    fails("cifar11:/x", "Did you mean cifar10")
    fails(str(tmp_path), f"folder:{tmp_path}")
    fails("digits", "0 samples", samples=0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"])
def test_a_missing_data_set_gives_the_ready_command(tmp_path: Path, name: str) -> None:
    fails(f"{name}:{tmp_path}", f"--data {name}:{tmp_path} --download")
    assert list(tmp_path.iterdir()) == []


def test_cifar10_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    made = {}
    for name in [*(entry[0] for entry in CIFAR10.train_list), "test_batch"]:
        made[name] = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": made[name], "labels": [1, 2, 3, 4]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    test = load_data(f"cifar10:{tmp_path}")
    assert np.array_equal(
        test.x, made["test_batch"].reshape(4, 3, 32, 32).astype(np.float32) / np.float32(255)
    )
    assert test.y.tolist() == [1, 2, 3, 4]
    assert test.classes == 10
    assert load_data(f"cifar10:{tmp_path}", split="train").total == 20


def pictures(root: Path, size: tuple[int, int] = (6, 4)) -> None:
    for label, name in enumerate(("cats", "dogs")):
        (root / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((size[1], size[0], 3), 40 * label + number, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def test_folder_of_images(tmp_path: Path) -> None:
    pictures(tmp_path / "test")
    pictures(tmp_path / "train")
    (tmp_path / "test" / "cats" / "notes.txt").write_text("x")
    data = load_data(f"folder:{tmp_path}")
    assert data.x.shape == (6, 3, 4, 6)
    assert (data.x[:, 0, 0, 0] * 255).round().astype(int).tolist() == [0, 1, 2, 40, 41, 42]
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.classes == 2
    assert load_data(f"folder:{tmp_path}", split="train").total == 6
    grey = load_data(f"folder:{tmp_path}", input_shape=(1, 4, 6))
    assert grey.x.shape == (6, 1, 4, 6)


def test_only_the_chosen_images_are_decoded(tmp_path: Path) -> None:
    pictures(tmp_path)
    index = choose(6, 3, 0)
    skipped = next(number for number in range(6) if number not in index)
    (tmp_path / ("cats", "dogs")[skipped // 3] / f"{skipped % 3}.png").write_bytes(b"no image")
    assert load_data(f"folder:{tmp_path}", samples=3).index.tolist() == index.tolist()
    fails(f"folder:{tmp_path}", "cannot be read as an image", samples=None)


def test_images_of_other_sizes(tmp_path: Path) -> None:
    pictures(tmp_path, (20, 10))
    data = load_data(f"folder:{tmp_path}", input_shape=(3, 8, 8))
    assert data.x.shape == (6, 3, 8, 8)
    assert "centre-cropped to 8x8" in data.notes[0]
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "dogs" / "9.png")
    fails(f"folder:{tmp_path}", "5x5", samples=None)


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    fails(f"folder:{tmp_path}/none", "There is no folder")
    fails(f"folder:{tmp_path}", "There are no images")
    pictures(tmp_path / "train")
    fails(f"folder:{tmp_path}", "no test split")
    (tmp_path / "flat").mkdir()
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "flat" / "a.png")
    assert load_data(f"folder:{tmp_path}/flat").y is None
    fails(f"folder:{tmp_path}/flat", "no train split", split="train")


def test_public_images(assets: Path) -> None:
    data = load_data(str(assets / "data/cifar10-test-1k.npz"))
    assert data.x.shape == (200, 3, 32, 32)
    assert (data.total, data.classes) == (1000, 10)
    raw = np.load(assets / "data/cifar10-test-1k.npz")
    assert np.array_equal(
        data.x[7], raw["x"][data.index[7]].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    )
