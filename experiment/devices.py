"""Where parameters and batches lie on the local devices: data parallelism."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh(train):
    """The local devices that a batch is split over: as many as divide it evenly.

    Args:
      train: `config.train`; `batch_size / accumulate` rows are computed at once.
    """
    rows = train.batch_size // train.accumulate
    count = max(n for n in range(1, jax.local_device_count() + 1) if rows % n == 0)
    return Mesh(np.asarray(jax.local_devices()[:count]), ("data",))


def split_rows(params, axis=0):
    """Sharding for a batch whose rows, on `axis`, are split over the devices that hold `params`: data parallelism."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
