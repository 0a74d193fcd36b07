"""Checks what the config names: ranks, data sets, initial weights, the login of Weights & Biases."""

import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from jobs.login.initial_weights import describe_initial_weights
from jobs.readiness.finding import Finding, format_bytes
from jobs.readiness.request import Request
from vit.config.paths import shell_word
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.dataset_manifest import DatasetManifest, check_data_sets, read_dataset_manifest
from vit.run.counts import counted
from vit.run.disk_errors import naming
from vit.run.folder import RunFolder
from vit.run.hints import command

WANDB_SERVER = "https://api.wandb.ai"
# Variables with which Weights & Biases logs in by itself.
WANDB_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def check_config(request: Request) -> Iterator[Finding]:
    """The ranks divide the batch, and the initial weights exist and fit the model."""
    if (cfg := request.cfg) is None:
        return
    try:
        cfg.check_ranks(request.ranks)
        cfg.check_mixing()
    except UserError as error:
        yield failed("batch", error)
    else:
        counts = dict.fromkeys((stage.micro_batches, stage.micro_batch) for stage in cfg.stages)
        each = ", then ".join(f"{n // request.ranks} of {n} micro-batches of {size} images" for n, size in counts)
        ranks = counted(request.ranks, "rank")
        yield Finding("batch", "OK", f"global batch {cfg.global_batch:,} on {ranks}: {each} each")
    if cfg.init_from:
        try:
            if request.initial.error:
                raise request.initial.error
            lines = describe_initial_weights([(RunFolder(request.runs / "none"), cfg)], dry_run=False)
            yield Finding("initial weights", "OK", "; ".join([*lines, *request.initial.lines]))
        except UserError as error:
            yield failed("initial weights", error)


def check_data(request: Request) -> Iterator[Finding]:
    """The data sets are there, have the size that their manifests say, and the same classes as the model."""
    if (cfg := request.cfg) is None:
        return
    whole = True
    for split, path in (("train", cfg.data.train.absolute()), ("val", cfg.data.val.absolute())):
        try:
            yield Finding(f"data.{split}", "OK", _describe(path, _check_file(path), cfg))
        except (UserError, OSError) as error:
            whole = False
            yield failed(f"data.{split}", error)
    if whole:
        try:
            check_data_sets(cfg.model.num_classes, cfg.data.train.absolute(), cfg.data.val.absolute())
        except UserError as error:
            yield failed("classes", error)
        else:
            yield Finding("classes", "OK", f"{cfg.model.num_classes:,}, the same in both data sets and in the model")


def _check_file(path: Path) -> DatasetManifest:
    """The manifest of a data set that is as long as that says, and can be read.  Raises UserError, OSError."""
    manifest = read_dataset_manifest(path)
    if not path.exists():
        raise UserError(f"{path} is missing, but its manifest exists; copy the data set again, or write it anew")
    if (found := path.stat().st_size) != manifest.bytes:
        raise UserError(
            f"{path} has {found:,} bytes, but its manifest says {manifest.bytes:,}; copy the data set again, or write "
            "it anew"
        )
    with naming(path), path.open("rb", buffering=0) as file:
        for offset in (0, max(0, found - 4096)):
            file.seek(offset)
            file.read(4096)
    return manifest


def _describe(path: Path, manifest: DatasetManifest, cfg: Config) -> str:
    used = min(manifest.samples, cfg.data.limit or manifest.samples)
    limit = f", of which {used:,} are used (data.limit)" if used < manifest.samples else ""
    checked = f"{command('data_prep.check_beton', shell_word(path))} checks them"
    checked = "the first epoch checks them" if cfg.data.verify == "first-epoch" else checked
    size = format_bytes(manifest.bytes)
    return f"{path}: {manifest.samples:,} images{limit}, {size}, complete; its manifest has digests, {checked}"


def check_wandb(request: Request) -> Iterator[Finding]:
    """Whether a login is stored for the server that a run would log to; it is not tried, which needs a network."""
    if request.cfg is None or request.cfg.log.wandb == "off":
        return
    if request.cfg.log.wandb == "offline":
        text = f"offline: wandb sync, or {command('vit.wandb_sender')}, sends the records later"
        yield Finding("W&B", "OK", text)
        return
    advice = "wandb login, or export WANDB_API_KEY, before you submit; or --log.wandb offline"
    server = os.environ.get("WANDB_BASE_URL", WANDB_SERVER)
    host = urlsplit(server).hostname or server
    if mode := {"offline", "disabled", "dryrun"} & {os.environ.get("WANDB_MODE", "")}:
        yield Finding("W&B", "WARN", f"WANDB_MODE={mode.pop()}: nothing is sent although log.wandb is online", advice)
        return
    if variable := next((name for name in WANDB_VARIABLES if os.environ.get(name)), None):
        yield Finding("W&B", "OK", f"a login for {host} is in {variable}, which the jobs inherit")
        return
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    file = file if file.exists() or "NETRC" in os.environ else file.with_name("_netrc")
    try:
        login = netrc.netrc(file).authenticators(host)
    except FileNotFoundError:
        login = None
    except (OSError, netrc.NetrcParseError) as error:
        yield Finding("W&B", "WARN", f"{file} cannot be read ({error}): nothing is sent while the run trains", advice)
        return
    if login:
        yield Finding("W&B", "OK", f"a login for {host} is in {file}")
    else:
        yield Finding("W&B", "WARN", f"no login for {host}: the run trains, but nothing is sent meanwhile", advice)


def failed(check: str, error: Exception) -> Finding:
    """A check that failed, with the message `what happened; what to do` of an exception."""
    if isinstance(error, OSError) and error.filename:
        advice = "look at it with `ls -l`; if its server does not respond, try again later"
        return Finding(check, "FAIL", f"{error.filename}: {error.strerror}", advice)
    text, _, advice = str(error).partition("; ")
    return Finding(check, "FAIL", text, advice or "correct what is named here, and check again")
