"""mnist, fashion-mnist and cifar10: read from the folder HOMEOSTAT_DATA, else downloaded once, checked by sha256.

The official test split is kept; validation is a stratified part of the official training split, seeded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from homeostat.errors import HomeostatError, invalid
from homeostat.training.archives import (
    SPLIT_KEYS,
    Arrays,
    check_images,
    read_cifar_archive,
    read_cifar_folder,
    read_idx,
    read_npz,
)
from homeostat.training.splits import stratified_split
from homeostat.training.task import Task

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class _DataSet:
    """A published data set: its names on disk, where it is downloaded, and its hashes.

    Attributes:
        npz: file names, without suffix, under which it may lie in HOMEOSTAT_DATA.
        folders: subfolders of HOMEOSTAT_DATA that may hold it.
        files: name of each file to download -> sha256.
        mirrors: addresses that end in a slash, tried in order.
        valid_share: the part of the official training split that becomes the validation split.
        begins: the first training labels; they tell data sets apart whose files have the same names.
    """

    npz: tuple[str, ...]
    folders: tuple[str, ...]
    files: dict[str, str]
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]
    valid_share: float
    begins: tuple[int, ...]


_SETS = {
    "mnist": _DataSet(
        npz=("mnist",),
        folders=("mnist", "MNIST", "MNIST/raw", "mnist/raw"),
        files={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        classes=tuple(str(digit) for digit in range(10)),
        valid_share=1 / 6,
        begins=(5, 0, 4, 1, 9, 2, 1, 3),
    ),
    "fashion-mnist": _DataSet(
        npz=("fashion-mnist", "fashion_mnist"),
        folders=("fashion-mnist", "fashion_mnist", "fashion", "FashionMNIST", "FashionMNIST/raw"),
        files={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        valid_share=1 / 6,
        begins=(9, 0, 0, 3, 0, 2, 7, 2),
    ),
    "cifar10": _DataSet(
        npz=("cifar10", "cifar-10", "cifar10_jpeg"),
        folders=("cifar-10-batches-bin", "cifar10", "cifar-10", "cifar10/cifar-10-batches-bin"),
        files={_CIFAR_ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        mirrors=("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        valid_share=1 / 5,
        begins=(),
    ),
}


def downloaded_task(name: str, *, seed: int = 0) -> Task:
    """The task mnist, fashion-mnist or cifar10.

    Raises: HomeostatError if the data are neither in HOMEOSTAT_DATA nor can be downloaded; InvalidValue if a file found
        there is damaged or of a kind that would have to be unpickled.
    """
    known = _SETS[name]
    arrays, source = _from_folder(name, known) or _from_network(name, known)
    check_images(arrays, len(known.classes), f"{name} ({source})")
    train, valid = stratified_split(
        arrays["y_train"], (1 - known.valid_share, known.valid_share), seed=seed, where=name
    )
    splits = []
    for split, part in (("train", train), ("train", valid), ("test", slice(None))):
        splits.append((_channels_first(arrays[f"x_{split}"][part]), _labels(arrays[f"y_{split}"][part])))
    return Task(
        data=splits,
        name=name,
        classes=known.classes,
        seed=seed,
        description={
            "source": source,
            "split": f"official test split; validation: {len(valid)} of the training split, stratified, seed {seed}",
            "seed": seed,
        },
    )


def _channels_first(images: np.ndarray) -> torch.Tensor:
    """(N, H, W) or (N, H, W, C) as a view (N, C, H, W), whose memory is already channels_last."""
    stored = torch.from_numpy(images if images.flags.writeable else images.copy())
    return stored.unsqueeze(1) if stored.ndim == 3 else stored.permute(0, 3, 1, 2)


def _labels(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _from_folder(name: str, known: _DataSet) -> tuple[Arrays, str] | None:
    """The arrays in HOMEOSTAT_DATA and where they were found; None if it is unset or does not hold them."""
    root = _data_folder()
    if root is None:
        return None
    for stem in known.npz:
        if (root / f"{stem}.npz").is_file():
            return read_npz(root / f"{stem}.npz"), str(root / f"{stem}.npz")
    places = [root / folder for folder in known.folders]
    for read in (_cifar_in, _idx_in):
        for place in [*places, root]:
            if (found := read(place, known, name)) is not None:
                return found, str(place)
    for place in [root, *root.glob("*")]:
        if name == "cifar10" and (place.name.startswith("cifar-10-python") or (place / "data_batch_1").is_file()):
            cure = (
                f"Reading it would unpickle, which can run any code. Put {_CIFAR_ARCHIVE} (the binary version) there."
            )
            raise invalid("cifar10", "HOMEOSTAT_DATA", "hold the binary version, not the Python one", str(place), cure)
    return None


def _cifar_in(place: Path, known: _DataSet, name: str) -> Arrays | None:
    if _CIFAR_ARCHIVE not in known.files:
        return None
    if (place / "data_batch_1.bin").is_file():
        return read_cifar_folder(place)
    return read_cifar_archive(place / _CIFAR_ARCHIVE) if (place / _CIFAR_ARCHIVE).is_file() else None


def _idx_in(place: Path, known: _DataSet, name: str) -> Arrays | None:
    """The four IDX files of one folder; None if they are missing or another data set's of the same names."""
    if _CIFAR_ARCHIVE in known.files:
        return None
    paths = [next(_spellings(place, stem), None) for stem in _IDX]
    if all(path is None for path in paths):
        return None
    for stem, path in zip(_IDX, paths, strict=True):
        if path is None:
            raise invalid(
                name, "HOMEOSTAT_DATA", f"hold {stem} or {stem}.gz", str(place), "The other IDX files are there."
            )
    arrays = dict(zip(SPLIT_KEYS, (read_idx(path) for path in paths if path), strict=True))
    first = tuple(arrays["y_train"][: len(known.begins)].tolist())
    others = [other.begins for key, other in _SETS.items() if key != name and other.begins]
    return None if first in others else arrays


def _spellings(place: Path, stem: str) -> Iterator[Path]:
    for spelling in (stem, stem.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (place / f"{spelling}{suffix}").is_file():
                yield place / f"{spelling}{suffix}"


def _data_folder() -> Path | None:
    text = os.environ.get("HOMEOSTAT_DATA", "")
    if not text:
        return None
    root = Path(text).expanduser()
    if not root.is_dir():
        raise invalid("load_task", "HOMEOSTAT_DATA", "name a folder that exists", text, "Correct it or unset it.")
    return root


def _from_network(name: str, known: _DataSet) -> tuple[Arrays, str]:
    from homeostat.training.cache import cache_folder

    folder = cache_folder() / "downloads" / name
    paths = [_fetched(name, file, digest, known, folder) for file, digest in known.files.items()]
    if _CIFAR_ARCHIVE in known.files:
        return read_cifar_archive(paths[0]), str(paths[0])
    return dict(zip(SPLIT_KEYS, map(read_idx, paths), strict=True)), str(folder)


def _fetched(name: str, file: str, digest: str, known: _DataSet, folder: Path) -> Path:
    """The path of one downloaded file whose sha256 is `digest`; tries the mirrors in order."""
    retrieve = _retriever()
    reasons = []
    for mirror in known.mirrors:
        try:
            return Path(retrieve(mirror + file, known_hash=f"sha256:{digest}", path=folder, fname=file))
        except (OSError, ValueError) as error:  # no network, no such page, a full disk, or another sha256
            reasons.append(f"{mirror}: {type(error).__name__}: {str(error)[:150]}")
    place = os.environ.get("HOMEOSTAT_DATA", "")
    looked = f"It is not in HOMEOSTAT_DATA={place!r} either. " if place else ""
    layout = (
        _CIFAR_ARCHIVE
        if _CIFAR_ARCHIVE in known.files
        else f"{known.npz[0]}.npz or {known.folders[0]}/{_IDX[0]}.gz, ..."
    )
    cure = f"Set HOMEOSTAT_DATA to a folder that holds {layout}, or allow the download."
    raise HomeostatError(
        f"{name}: {file} could not be downloaded to {folder}. {looked}{cure}\n  " + "\n  ".join(reasons)
    )


def _retriever() -> Callable[..., str]:
    import pooch

    return pooch.retrieve
