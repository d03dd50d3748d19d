# SPDX-License-Identifier: BSD-3-Clause
"""Two small real data sets of the UCI repository, as scikit-learn's loaders give them; DESCR tells whose they are."""
from importlib import resources
from typing import IO, Any

import numpy as np

__all__ = ["Bunch", "load_digits", "load_iris"]


class Bunch(dict[str, Any]):
    """A dict whose keys can be read and set as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here; there are {', '.join(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]


def load_digits(*, return_X_y: bool = False) -> Any:
    """1797 handwritten digits of 8 x 8 pixels from 0 to 16 (Alpaydin and Kaynak 1998).

    A Bunch of data [1797, 64] float64, target [1797] int64, images [1797, 8, 8], feature_names, target_names and DESCR;
    return_X_y: (data, target) alone.
    """
    with _open("digits.npz") as file, np.load(file) as stored:
        images, target = stored["images"].astype(np.float64), stored["target"].astype(np.int64)
    data = images.reshape(-1, 64)
    if return_X_y:
        return data, target
    pixels = [f"pixel_{i}_{j}" for i in range(8) for j in range(8)]
    return Bunch(data=data, target=target, frame=None, feature_names=pixels, target_names=np.arange(10), images=images,
                 DESCR=_description("digits.txt"))


def load_iris(*, return_X_y: bool = False) -> Any:
    """Lengths in centimetres of 150 irises of three species (Fisher 1936).

    A Bunch of data [150, 4] float64, target [150] int64, feature_names, target_names and DESCR;
    return_X_y: (data, target) alone.
    """
    with _open("iris.csv") as file:
        feature_names = file.readline().decode().strip().split(",")[:4]
        table = np.loadtxt(file, delimiter=",")
    data, target = table[:, :4].copy(), table[:, 4].astype(np.int64)
    if return_X_y:
        return data, target
    return Bunch(data=data, target=target, frame=None, target_names=np.array(["setosa", "versicolor", "virginica"]),
                 DESCR=_description("iris.txt"), feature_names=feature_names, filename="iris.csv", data_module=__name__)


def _open(name: str) -> IO[bytes]:
    return resources.files(__name__).joinpath(name).open("rb")


def _description(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
