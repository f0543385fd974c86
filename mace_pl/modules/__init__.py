"""LightningModules: hooks and wiring."""
