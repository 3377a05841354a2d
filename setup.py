"""Let tools that know only setup.py install the package; pyproject.toml has the details."""

from setuptools import setup

setup()
