"""A page in the browser on which the strengths of a run are moved and the images follow."""
