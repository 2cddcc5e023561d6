"""Named random generators under one root seed.

A stream depends only on the root seed and its name, so a new stream or draw in one place changes nothing elsewhere.
"""

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for the stream `name` under the root `seed`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(seed: int, name: str, device: str = "cpu") -> torch.Generator:
    """Return a torch generator for the stream `name`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, name))


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """Return a numpy generator for the stream `name`."""
    return np.random.default_rng(derived_seed(seed, name))
