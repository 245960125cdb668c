"""Float64 NumPy forms of the published formulas, written without looking at the package."""
