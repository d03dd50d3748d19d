#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes tests/golden.json from torch, for machines without it: `python .ci/golden.py`. tests/peers.py has the cases."""
import json
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import peers  # noqa: E402  the cases: what is compared


def main() -> None:
    state = {name: make(torch.nn).state_dict() for name, make in peers.MODELS.items()}
    golden = {"torch": torch.__version__.partition("+")[0],
              "promotion": peers.promotion(torch), "defaults": peers.defaults(torch),
              "layers": {case.name: case.run(torch) for case in peers.LAYERS if hasattr(torch.nn, case.module)},
              "optimizers": {case.name: case.run(torch) for case in peers.OPTIMIZERS},
              "state": {name: {k: list(v.shape) for k, v in tensors.items()} for name, tensors in state.items()}}
    text = json.dumps(golden, separators=(",", ":"))
    (TESTS / "golden.json").write_text(text + "\n")
    print(f"{len(text) / 1024:.0f} KiB: {', '.join(f'{len(v)} {k}' for k, v in golden.items() if k != 'torch')}")


if __name__ == "__main__":
    main()
