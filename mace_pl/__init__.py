"""Erase concepts from Stable-Diffusion-type models (MACE) with PyTorch Lightning."""
