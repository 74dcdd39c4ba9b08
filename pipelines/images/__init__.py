"""Single images: format, looks, declared origin, and reasons for rejection."""
