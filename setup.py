"""The one part of the package that is compiled: kernels of packed ternary layers, optional."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, LinkError

KERNELS = Path("src/diffit/nn/kernels")


class BuildKernels(build_ext):
    """Builds with OpenMP where the compiler has it, and without where not."""

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)
        except (CCompilerError, CompileError, LinkError):
            extension.extra_compile_args.remove("-fopenmp")
            extension.extra_link_args.remove("-fopenmp")
            super().build_extension(extension)


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            "diffit.nn.kernels._ternary",
            sources=[str(KERNELS / "ternary.cpp")],
            depends=[str(path) for path in sorted(KERNELS.glob("*.h"))],
            # Products and sums are rounded one by one, as PyTorch does: kernels and reference agree
            # in every bit that the order of sums leaves.
            extra_compile_args=[
                "-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fopenmp", "-g0",
            ],
            extra_link_args=["-fopenmp"],
            # It has nothing of Python inside: ctypes opens it.
            py_limited_api=True,
            # Without a compiler the package installs all the same, and PyTorch multiplies.
            optional=True,
        )
    ],
)  # fmt: skip
