"""What tests share: toy models, small runs, tolerances."""
