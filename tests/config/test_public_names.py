"""What a script or a notebook sees of the package: names, version, documentation, start-up."""

import subprocess
import sys

import raybrew as rb


def test_completion_offers_the_public_names_and_no_others():
    public = [name for name in dir(rb) if not name.startswith("_")]
    assert public == sorted(rb.__all__)
    assert all(getattr(rb, name) is not None for name in public)


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert rb.__version__ == version("raybrew")


def test_importing_the_package_loads_none_of_what_it_is_built_on():
    code = (
        "import sys, raybrew; print({'torch', 'ray', 'transformers', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
