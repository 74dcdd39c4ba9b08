"""What the package is called where it is installed from, and its version.

The import name and the command are `curate`; the distribution is not, because that name is another project's on PyPI.
The version stands here, and not in the metadata of an installation, so that a checkout without one knows it too.
"""

NAME = "curate-images"
VERSION = "0.1.0"  # the build reads it from here


def pip_install(*extras: str) -> str:
    """The command that installs curate with these extras, to paste into a shell: pip install 'curate-images[s3]'."""
    return f"pip install '{NAME}[{','.join(extras)}]'" if extras else f"pip install {NAME}"
