"""What maintainers run; never imported by a package."""
