"""Products with packed ternary matrices: of full-precision rows, and of rows rounded to 8 bits.

`rounded` says, in PyTorch, what the others must equal; `native` is a C++ library for CPUs, `gpu`
has Triton kernels. `diffit.nn.packed` chooses among them.
"""
