"""Ways to bring an erased target back, each a function from a trial to images."""
