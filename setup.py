"""What setup.cfg cannot declare: the C++ extensions, and that installed copies have the recipes.

Without the extensions, FFCV's decoder and torch are used instead.
"""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off"]


class BuildWithConfigs(build_py):
    """Copies `configs/` into the package, where vit.config.own_files finds it, unless the installation is editable."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            only_yaml = shutil.ignore_patterns("*.md")
            shutil.copytree("configs", Path(self.build_lib, "vit", "configs"), ignore=only_yaml, dirs_exist_ok=True)


setup(
    cmdclass={"build_py": BuildWithConfigs},
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
            depends=[
                f"vit/{name}.h"
                for name in ("augment/pixel_kernels", "augment/warp", "data/cpu_dispatch", "data/resize")
            ],
            extra_compile_args=[*FLAGS, "-fno-trapping-math"],
            optional=True,
        ),
    ],
)
