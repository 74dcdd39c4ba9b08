"""Files, tars and shards, on a disk or on an object store."""
