"""The forms in which an edit is written for this and other programs."""
