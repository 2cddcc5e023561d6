"""One root seed, and a named generator for each thing that draws.

A name's stream depends on the root seed and the name alone, so adding a draw in one place moves nothing elsewhere.
"""

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` under the root `seed`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(seed: int, name: str, device: str = "cpu") -> torch.Generator:
    """A torch generator for the stream `name`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, name))


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """A numpy generator for the stream `name`."""
    return np.random.default_rng(derived_seed(seed, name))
