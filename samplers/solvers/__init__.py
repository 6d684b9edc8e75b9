"""Solvers: generators `solver(denoise, x, levels, *, noise, **options)` that yield one Step after another."""
