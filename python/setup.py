"""The wheel's tag: any Python 3, and the platform, because it carries a library and a program but no extension module."""
import re
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class AnyPython(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class WithBinaries(Distribution):
    def has_ext_modules(self):
        return True


version = re.search(r'^__version__ = "(.+)"$', Path("moescope/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
suffix = Path("version_suffix.txt")  # scripts/wheel.sh writes it where the binaries are for one machine alone
setup(version=version + (suffix.read_text(encoding="utf-8").strip() if suffix.exists() else ""), cmdclass={"bdist_wheel": AnyPython},
      distclass=WithBinaries)
