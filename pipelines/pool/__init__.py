"""A pool on disk: its manifests, its pixels, the labeled images and the truth beside it."""
