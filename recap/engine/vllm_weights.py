"""A copy of a LLaVA checkpoint with the weight names that vLLM reads.

    python -m recap.engine.vllm_weights FOLDER TARGET

transformers 5 leaves `vision_model.` out of the names of a CLIP tower's weights, and vLLM wants it there. transformers
reads the copy, too.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from hpc.base.errors import Exit, Parser, UserError

_TOWER = ".vision_tower."  # followed by "vision_model." in the names that vLLM reads


def check_names(folder: Path) -> None:
    """Raise UserError for weight names that vLLM does not read (transformers 5 writes them)."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            flat = any(_vllm_name(name) != name for name in file.keys())  # noqa: SIM118 - not a dictionary
        if flat:
            raise UserError(
                f"{folder}: vLLM does not read the weight names of transformers 5. Make a copy that both read: "
                f"python -m recap.engine.vllm_weights {folder} TARGET"
            )


def rename(folder: Path, target: Path) -> None:
    """Copy a checkpoint, with `vision_tower.vision_model.` in its weight names; transformers reads it as before."""
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix != ".safetensors":
            text = path.read_bytes()
            if path.name.endswith(".index.json"):
                text = text.replace(b"vision_tower.", b"vision_tower.vision_model.")
                text = text.replace(b"vision_model.vision_model.", b"vision_model.")
            (target / path.name).write_bytes(text)
            continue
        with safe_open(path, "pt") as file:
            tensors = {_vllm_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            save_file(tensors, target / path.name, metadata=file.metadata())
    shutil.copymode(folder, target)


def _vllm_name(name: str) -> str:
    head, tower, tail = f".{name}".partition(_TOWER)
    if not tower or tail.startswith("vision_model."):
        return name
    return f"{head}{tower}vision_model.{tail}".removeprefix(".")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("target", type=Path, help="folder to make")
    options = parser.parse_args(arguments)
    if not (options.folder / "config.json").is_file():
        parser.error(f"{options.folder} holds no config.json: it is no checkpoint")
    if options.target.exists():
        parser.error(f"{options.target} exists: choose another folder")
    rename(options.folder, options.target)
    sys.stdout.write(f"{options.target}\n")
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
