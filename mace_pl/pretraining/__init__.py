"""Training the small bundled model, and fine-tuning."""
