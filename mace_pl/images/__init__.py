"""Images and masks of the targets: generated, segmented, checked."""
