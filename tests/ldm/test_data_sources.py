"""Must show: a training sees the same, and learns the same, from images, tar shards, parquet and the latent cache."""

from test_data_shards import as_folder, as_parquet, as_tar, samples  # noqa: F401
