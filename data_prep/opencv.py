"""OpenCV, which scales images and encodes them as JPEGs.  JPEGs that are copied, and small raw images, need none."""

from types import ModuleType

from vit.config.user_error import UserError


def opencv() -> ModuleType:
    """The module.  Raises UserError if it is not installed, or cannot be imported, such as without libGL."""
    try:
        import cv2
    except ImportError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"images must be scaled or encoded, but OpenCV cannot be imported ({why}); pip install opencv-python, or "
            "opencv-python-headless if a library of a desktop is missing"
        ) from None
    return cv2


def opencv_version() -> str:
    """The version, which determines the bytes of images that are scaled or encoded; empty without OpenCV."""
    try:
        return str(opencv().__version__)
    except UserError:
        return ""
