"""Pictures in: resizing, data sets, loaders and preparation."""
