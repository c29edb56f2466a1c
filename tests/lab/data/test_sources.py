"""Where data sets come from, with files in each one's own format."""

import random
import shutil

import numpy as np
import pytest
import torch
from dataset_files import COLOUR, GREY, write_colour, write_grey
from PIL import Image
from torchvision import datasets
from torchvision.transforms import functional

from normcore.lab import load_dataset
from normcore.lab.data import sources

RNG = np.random.default_rng(0)


def parts(data):
    """The four tensors of a data set as arrays."""
    return [t.numpy() for t in (data.pixels_train, data.y_train, data.pixels_test, data.y_test)]


@pytest.mark.parametrize("name", [*GREY, *COLOUR])
def test_torchvision_files_are_read_whole(name, tmp_path, monkeypatch):
    want = write_grey(name, tmp_path) if name in GREY else write_colour(name, tmp_path, monkeypatch)
    data = load_dataset(name, tmp_path, dtype=torch.float64)
    assert all(np.array_equal(a, b) for a, b in zip(parts(data), want, strict=True))
    assert data.pixels_train.dtype == torch.uint8 and data.pixels_train.is_contiguous()
    scaled = want[0] / 255.0
    assert np.allclose(data.x_train.numpy(), (scaled - scaled.mean()) / scaled.std(ddof=1), rtol=1e-12)
    assert data.classes == len(data.class_names) == (100 if name == "cifar100" else 10)
    assert data.class_names[1] == {**dict.fromkeys(COLOUR, "kind 1"), "mnist": "1 - one"}.get(name, "Trouser")


@pytest.mark.parametrize("name", [*GREY, *COLOUR])
def test_missing_files_name_the_line_that_fetches_them_and_nothing_is_fetched(name, tmp_path, monkeypatch):
    fetched = []

    def fetch(url, *args, md5=None, **kwargs):
        fetched.append((url, md5))
        raise RuntimeError("no network here")

    for module in (datasets.mnist, datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", fetch)
    root = tmp_path / "sets"
    line = f'load_dataset("{name}", root="{root}", download=True)'
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name, root)
    assert line in str(caught.value) and f"{name} is not in {root}" in str(caught.value)
    assert not fetched and not root.exists()
    with pytest.raises(RuntimeError, match="no network here|Error downloading"):
        eval(line)
    assert fetched and all(url.startswith("http") and len(md5) == 32 for url, md5 in fetched)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'root="data", download=True'):
        load_dataset(name)


def test_a_file_with_another_checksum_is_refused(tmp_path, monkeypatch):
    write_colour("cifar10", tmp_path, monkeypatch)
    load_dataset("cifar10", tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileNotFoundError, match="cifar10 is not in .*, or is damaged"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [8, 16, 5000])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    write_grey("mnist", tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileNotFoundError, match="mnist is not in .*, or is damaged"):
        load_dataset("mnist", tmp_path)


def test_mnist1d_is_the_package_with_its_defaults(monkeypatch):
    """Whatever its defaults are: here a tenth of the signals, which take seconds."""
    from mnist1d import data as package

    defaults = package.get_dataset_args()
    assert (defaults.num_samples, defaults.train_split) == (
        5000,
        0.8,
    )  # the 4,000 and 1,000 that the book tells of
    defaults.num_samples = 500
    monkeypatch.setattr(package, "get_dataset_args", lambda: defaults)
    random.seed(4), np.random.seed(4)
    states = random.getstate(), np.random.get_state()[1].tolist()
    data = load_dataset("mnist1d", dtype=torch.float64)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    want = package.make_dataset()
    names = ("x", "y", "x_test", "y_test")
    for got, array in zip(parts(data), (want[name] for name in names), strict=True):
        assert np.array_equal(got.reshape(array.shape), array)
    assert data.x_train.shape == (400, 1, 40) and data.x_test.shape == (100, 1, 40)
    assert load_dataset("mnist1d").pixels_train.dtype == torch.float32
    train = want["x"]
    assert np.allclose(data.x_train[:, 0], (train - train.mean()) / train.std(ddof=1), rtol=0, atol=1e-12)
    x, y = data.batches(3, 50, seed=1)[2]
    rows = torch.randint(400, (3, 50), generator=torch.Generator().manual_seed(1))[2]
    assert torch.equal(x, data.x_train[rows]) and torch.equal(y, data.y_train[rows])
    with pytest.raises(ValueError, match=r"crop and flip need images .* got examples of shape \(1, 40\)"):
        data.batches(3, 50, flip=True)


def labelled(paths):
    """The images of some files, by a plain loop, as a sorted list of (class, bytes)."""
    return sorted((p.parent.name, np.asarray(Image.open(p).convert("RGB")).tobytes()) for p in paths)


def as_pairs(data, pixels, labels):
    """The same of tensors."""
    pictures = pixels.permute(0, 2, 3, 1).numpy()
    return sorted((data.class_names[y], x.tobytes()) for x, y in zip(pictures, labels.tolist(), strict=True))


def test_photographs_through_the_image_folder(cifar10_folder):
    data = load_dataset("image-folder", cifar10_folder)
    assert data.pixels_train.shape == data.pixels_test.shape == (200, 3, 32, 32) and data.classes == 10
    assert as_pairs(data, data.pixels_train, data.y_train) == labelled(cifar10_folder.glob("train/*/*.jpg"))
    assert as_pairs(data, data.pixels_test, data.y_test) == labelled(cifar10_folder.glob("test/*/*.jpg"))
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.x_train.std()) == pytest.approx(1, abs=1e-5)
    assert len(data.y_train[:20].unique()) > 5  # not sorted by class
    again = load_dataset("image-folder", str(cifar10_folder))
    assert torch.equal(again.pixels_train, data.pixels_train) and torch.equal(again.y_test, data.y_test)
    x, _ = data.batches(3, 64, crop=4, flip=True)[2]
    assert x.shape == (64, 3, 32, 32) and bool(x.isfinite().all())


def test_class_folders_alone_are_split_by_class(cifar10_folder):
    root = cifar10_folder / "train"
    data = load_dataset("image-folder", root)
    assert data.y_train.bincount().tolist() == [16] * 10 and data.y_test.bincount().tolist() == [4] * 10
    both = [torch.cat([data.pixels_train, data.pixels_test]), torch.cat([data.y_train, data.y_test])]
    assert as_pairs(data, *both) == labelled(root.glob("*/*.jpg"))
    assert torch.equal(load_dataset("image-folder", root).pixels_test, data.pixels_test)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of small pictures, in train and test."""
    for part in ("train", "test"):
        for kind in ("ant", "bee"):
            for i in range(3):
                draw(tmp_path / part / kind / f"{i}.png", 6, 5)
    return tmp_path


def draw(path, width, height):
    """A picture of random bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def test_pictures_need_one_size_or_are_given_one(pictures):
    assert load_dataset("image-folder", pictures).pixels_train.shape == (6, 3, 5, 6)
    odd = pictures / "train" / "bee" / "1.png"
    draw(odd, 9, 12)
    with pytest.raises(
        ValueError, match="images must have one size, got .*9.*; image_size=32, say"
    ) as caught:
        load_dataset("image-folder", pictures)
    assert "12x9" in str(caught.value) and "5x6" in str(caught.value)
    data = load_dataset("image-folder", pictures, image_size=4)
    assert data.pixels_train.shape == data.pixels_test.shape == (6, 3, 4, 4)
    scaled = functional.center_crop(functional.resize(Image.open(odd), 4), 4)
    assert ("bee", np.asarray(scaled).tobytes()) in as_pairs(data, data.pixels_train, data.y_train)


def test_train_and_test_must_agree(pictures):
    for path in pictures.glob("test/*/*.png"):
        draw(path, 7, 7)
    with pytest.raises(ValueError, match="images must have one size, got 5x6 in train and 7x7 in test"):
        load_dataset("image-folder", pictures)
    draw(pictures / "test" / "cat" / "0.png", 7, 7)
    with pytest.raises(ValueError, match=r"the same classes in train and test, got \['cat'\] in one"):
        load_dataset("image-folder", pictures, image_size=5)
    shutil.rmtree(pictures / "test")
    with pytest.raises(ValueError, match="root must hold both train and test, or the folders of the classes"):
        load_dataset("image-folder", pictures)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not a picture", lambda b: b""])
def test_an_unreadable_picture_is_named(pictures, damage):
    bad = pictures / "train" / "ant" / "2.png"
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(OSError, match=r"cannot read the image .*train.ant.2\.png"):
        load_dataset("image-folder", pictures)


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="root must be the directory of images for image-folder, got None"):
        load_dataset("image-folder")
    with pytest.raises(FileNotFoundError, match="root must be a folder of images, got .*nowhere"):
        load_dataset("image-folder", tmp_path / "nowhere")
    (tmp_path / "ant").mkdir()
    with pytest.raises(FileNotFoundError, match="ant"):
        load_dataset("image-folder", tmp_path)


def test_reading_is_silent_where_there_is_no_terminal(pictures, capfd):
    load_dataset("image-folder", pictures)
    assert capfd.readouterr() == ("", "")


def test_large_sets_are_counted_not_copied(monkeypatch):
    pixels = torch.from_numpy(RNG.integers(0, 256, (9000, 2, 3, 1), dtype=np.uint8))
    mean, sd = sources.mean_and_sd(pixels, 16)
    assert (mean, sd) == (float((pixels.double() / 16).mean()), float((pixels.double() / 16).std()))
    monkeypatch.setattr(sources, "LARGE", 1)
    monkeypatch.setattr(torch.Tensor, "std", None)  # another way
    assert sources.mean_and_sd(pixels, 16) == pytest.approx((mean, sd), rel=1e-13)
