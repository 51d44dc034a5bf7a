"""Stage `download`: data.* -> data/raw/ text files + provenance.json."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from gpt2core.storage.files import replaced_directory, write_json
from gpt2ops.corpora.sources import collect
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.process.stage import run_stage


def main() -> None:
    data = load_params().data
    with replaced_directory(paths.RAW) as raw:
        provenance = collect(data, raw)
        write_json(raw / paths.PROVENANCE.name, provenance)
    num_files = len(provenance["files"])
    files = f"{num_files} files" if num_files > 1 else provenance["files"][0]["file"]
    say(f"{data.source}: {files}, {provenance['size_bytes']:,} bytes, licence: {provenance['licence'] or 'unknown'}")


if __name__ == "__main__":
    run_stage("download", main)
