"""Train the parts of a pipeline: ``python train.py fit --config configs/train/emoji_vae.yaml``."""

from mace_pl.train_cli import train_main

if __name__ == "__main__":
    train_main()
