"""What setup.cfg cannot say: the C++ parts.  Where they cannot be built, FFCV's decoder and torch do their work."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension(
            "vit.data._native",
            ["vit/data/native.cpp"],
            depends=["vit/data/huffman.h", "vit/data/resize.h"],
            libraries=["jpeg"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension(
            "vit.augment._pixel_ops",
            ["vit/augment/pixel_ops.cpp"],
            extra_compile_args=[*FLAGS, "-fno-trapping-math"],
            optional=True,
        ),
    ]
)
