"""The YAML of params.yaml: one value for each key, and no more of them than settings can have."""

from typing import Any

import yaml

MOST_BYTES, MOST_KEYS = 1_000_000, 100_000  # of params.yaml, and of one section of it


class SettingsLoader(yaml.SafeLoader):
    """YAML as the safe loader reads it; a key written twice in a section is an error, not the last one's win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # what the safe loader says of a list as a key
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} stands twice in its section; keep one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:  # sections merged into one another again and again
            problem = f"more than {MOST_KEYS:,} keys in a section"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
