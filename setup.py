"""Puts tasks/ and configs/ into a wheel as unimodal/bundled/, where `unimodal.places` finds them."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """An editable install finds them in the repository."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in sorted(path for room in ("tasks", "configs") for path in Path(room).glob("*.py")):
                target = Path(self.build_lib, "unimodal", "bundled", source)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": BuildWithRecipes})
