# SPDX-License-Identifier: BSD-3-Clause
from typing import Any, final

import numpy as np

def isas() -> list[str]: ...
def signatures() -> dict[str, str]: ...
def build_info() -> dict[str, Any]: ...
def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray: ...
@final
class Native:
    name: str
    isa: str
    def __init__(self, isa: str | None = None) -> None: ...
    def run(self, kernel: str, bufs: tuple[np.ndarray, ...], attrs: tuple[float, ...] = ()) -> None: ...

class TensorBase:
    array: Any
    storage: Any
    node: Any
    needs_grad: bool
    _grad: Any
    _hooks: Any
    def __buffer__(self, flags: int, /) -> memoryview: ...
