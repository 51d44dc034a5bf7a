"""What pyproject.toml cannot say: two packages of the wheel are made of files that lie elsewhere in the repository.

`gpt2ops.stages` is `tasks/`; `gpt2ops.published` has what `gpt2 init` makes a project of. A wheel with a package called
`tasks` would hide a user's own `tasks.py`.
"""

from setuptools import find_packages, setup

setup(
    script_name=__file__,  # pip passes its own name; a module of "." that is the setup script is not packaged
    packages=sorted({*find_packages(include=["gpt2core*", "gpt2ops*"]), "gpt2ops.stages", "gpt2ops.published"}),
    package_dir={"gpt2ops.stages": "tasks", "gpt2ops.published": "."},
    package_data={
        "gpt2core": ["py.typed", "assets/*"],
        "gpt2ops": ["py.typed", "*/assets/*", "*/*/assets/*", "*/templates/*"],
        "gpt2ops.published": ["params.yaml", "dvc.yaml", "data/corpus/shakespeare-plays.txt"],
    },
    include_package_data=False,
)
