"""What setup.cfg cannot say: the C++ decoder.  Where it cannot be built, FFCV's own is used."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "vit.data._native",
            ["vit/data/native.cpp"],
            depends=["vit/data/huffman.h", "vit/data/resize.h"],
            libraries=["jpeg"],
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=off"],
            optional=True,
        )
    ]
)
