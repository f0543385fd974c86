"""LightningDataModules: from files to batches."""
