"""The C++ extensions, which setup.cfg cannot declare.  Without them, FFCV's decoder and torch are used instead."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension(
            "vit.data._native",
            ["vit/data/native.cpp", "vit/data/whole_jpeg.cpp"],
            depends=[
                f"vit/data/{name}.h" for name in ("cpu_dispatch", "huffman", "huffman_tables", "jpeg_damage", "resize")
            ],
            libraries=["jpeg"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension(
            "vit.augment._pixel_ops",
            ["vit/augment/pixel_ops.cpp"],
            depends=["vit/augment/pixel_kernels.h", "vit/augment/warp.h", "vit/data/cpu_dispatch.h"],
            extra_compile_args=[*FLAGS, "-fno-trapping-math"],
            optional=True,
        ),
    ]
)
