"""Figures that can be defended: distances between images, accuracies, each with what it was measured on and by."""
