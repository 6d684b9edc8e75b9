"""Guidances: frozen dataclasses that change a Prediction with the help of its other branches."""
