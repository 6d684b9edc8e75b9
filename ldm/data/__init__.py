"""Data sets: built-in shapes, folders and shards of images, torchvision's small sets; the cache of their latents."""
