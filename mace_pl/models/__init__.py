"""The model that is edited: loading it, its text embeddings, its cross-attention, generating with it."""
