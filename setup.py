"""What setup.cfg cannot declare: the C++ extensions, an installation without FFCV, and the recipes of installed copies.

Without the extensions, FFCV's decoder and torch are used instead.
"""

import os
import re
import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_py import build_py

FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off"]


class Project(Distribution):
    """The project as in setup.cfg; with VIT_WITHOUT_FFCV=1, it requires neither FFCV nor what only FFCV needs."""

    def parse_config_files(self, filenames=None, ignore_option_errors=False):
        """Reads setup.cfg."""
        super().parse_config_files(filenames, ignore_option_errors)
        if os.environ.get("VIT_WITHOUT_FFCV", "0") not in ("", "0"):
            left_out = runpy.run_path("vit/run/dependencies.py")["FOR_FFCV"]
            kept = [line for line in self.install_requires if re.match(r"[\w-]+", line)[0] not in left_out]
            self.install_requires = kept
            self._finalize_requires()


class BuildWithConfigs(build_py):
    """Copies `configs/` into the package, where vit.config.own_files finds it, unless the installation is editable."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            only_yaml = shutil.ignore_patterns("*.md")
            shutil.copytree("configs", Path(self.build_lib, "vit", "configs"), ignore=only_yaml, dirs_exist_ok=True)


setup(
    distclass=Project,
    cmdclass={"build_py": BuildWithConfigs},
    ext_modules=[
        Extension(
            "vit.data._native",
            [f"vit/data/{name}.cpp" for name in ("native", "whole_jpeg", "jpeg_library")],
            depends=[
                f"vit/data/{name}.h"
                for name in ("cpu_dispatch", "huffman", "huffman_tables", "jpeg_damage", "jpeg_library", "resize")
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
