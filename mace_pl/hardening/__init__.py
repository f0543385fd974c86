"""Hardening: an edit and a LoRA on all attention, trained against free tokens that bring the targets back."""
