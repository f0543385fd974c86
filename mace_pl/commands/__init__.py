"""Commands that need no Trainer, a file each."""
