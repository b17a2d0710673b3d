"""Products with packed ternary matrices: of full-precision rows, and of rows rounded to 8 bits."""
