"""Run in a fork of the fork server: uses the GPU."""

import time

import torch


def main(arguments: list[str]) -> None:
    started = time.monotonic()
    total = torch.ones(8, device="cuda").sum().item()
    print(f"{total:.0f} from {torch.cuda.device_count()} GPU in {time.monotonic() - started:.2f} s")
