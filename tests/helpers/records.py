"""Records of the learning curve, as training writes them to metrics.jsonl."""

POSITION = {"steps": 100, "epoch": 0.5, "epochs": 5}


def training_record(step: int, loss: float = 1.0) -> dict[str, float]:
    return {"step": step, **POSITION, "loss": loss, "lr": 1e-3, "images_per_second": 1e4, "seconds_left": 90.0}


def evaluation_record(step: int, top1: float = 0.5) -> dict[str, float]:
    return {"step": step, **POSITION, "val_top1": top1, "val_top5": 0.9, "val_loss": 1.5}
