"""Uploads an exported model to the Hugging Face Hub."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError

# Never uploaded: keys, pickles and the training state of a checkpoint.
_NEVER = re.compile(r"\.env.*|.*\.(?:pem|key|pkl|pickle)|id_(?:rsa|ed25519).*|optimizer\..*|trainer\.json|\.netrc")
_NEEDED = ("config.json", "README.md")


@dataclass(frozen=True)
class Upload:
    directory: Path
    files: list[tuple[str, int]]  # names with sizes in bytes
    skipped: list[str]

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.files)


def check_repo_id(repo_id: str) -> None:
    """Raises UserError unless it is a valid OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise UserError(
            f"{repo_id!r} is not a repository name; write OWNER/NAME with letters, digits, '-', '_' and '.'."
        )


def plan_upload(directory: Path) -> Upload:
    """Raises UserError if the directory is not an exported model."""
    missing = [name for name in _NEEDED if not (directory / name).is_file()]
    if missing or not any(directory.glob("*.safetensors")):
        what = ", ".join(missing) or "model.safetensors"
        raise UserError(f"{directory} has no {what}; push a folder that `gpt2 export` wrote.")
    files, skipped = [], []
    for file in sorted(directory.iterdir()):
        if file.is_symlink() or not file.is_file() or _NEVER.fullmatch(file.name):
            skipped.append(file.name)
        else:
            files.append((file.name, file.stat().st_size))
    return Upload(directory, files, skipped)


def send(upload: Upload, repo_id: str, *, private: bool, token: str | None) -> str:
    """Create the repository if it does not exist, and upload in one commit; returns its URL.

    Raises UserError, without the token, if the Hub refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=upload.directory,
            allow_patterns=[glob.escape(name) for name, _ in upload.files],  # a file may be called `*`
            commit_message="Upload a GPT-2",
        )
    except Exception as error:  # the client raises many types
        raise UserError(_reason(error, repo_id, api.endpoint)) from None
    return f"{api.endpoint}/{repo_id}"


def find_token(variable: str | None) -> str | None:
    """The token in the environment variable; with None, the Hub's client finds it and the result is None.

    Raises UserError if there is no token.
    """
    from huggingface_hub import get_token

    if variable is None:
        if get_token() is None:
            raise UserError("no Hugging Face token: run `hf auth login`, or set HF_TOKEN and push again.")
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(
            f"--token-from-env: the environment variable {variable} is empty; set it to a Hugging Face token."
        )
    return token


def _reason(error: Exception, repo_id: str, endpoint: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status == 401:
            return f"{endpoint} does not accept this token; create one with write access and push again."
        if status == 403:
            return f"{endpoint}: this token has no write access to {repo_id}; use another token or another OWNER."
        message = str(getattr(error, "server_message", None) or "").strip().splitlines() or ["no reason given"]
        return f"{endpoint} refused {repo_id} (HTTP {status}: {message[0][:200]})."
    return f"{endpoint} cannot be reached ({type(error).__name__}); nothing was published. Check the network."
